"""A run -> its head as one file that needs none of this project: torch.export (.pt2) and ONNX, both checked on a cache.

Inputs, of one image: every map the head reads, "1 c h w", by its name; `boxes` "n 4", xyxy in pixels of the network
input, float32; `queries` "n d". Outputs: `mask_logits` "n r r" in the frame of each box, before sigmoid, and `iou`
"n classes" where the head predicts it. The number of boxes is free, and so are the sizes of the maps where the head's
operators let them be. A .pt2 wants `import torchvision` before it is loaded, for RoIAlign; onnxruntime has its own.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .data.sources import Cached
from .detectors.base import Features
from .errors import PipelineError
from .files import write_json
from .heads.base import boxes_in_pixels
from .heads.export_mode import export_mode
from .heads.mask_frozen_detr import MaskFrozenDetr
from .training.checkpoint import check_features, load_head

Format = Literal["pt2", "onnx"]
FILES: dict[Format, str] = {"pt2": "head.pt2", "onnx": "head.onnx"}
MOST = 1e-4
"""Largest difference from the head itself, of any output, with which an export passes."""
IMAGES = 4
"""Of the cache, that it is checked on."""
OPSET = 17


@dataclass(frozen=True)
class Sample:
    """One image to check on."""

    features: Features
    boxes: Tensor
    """As the head takes them: cxcywh in 0-1 of the view. "n 4" """
    queries: Tensor
    """ "n d" """


@dataclass(frozen=True)
class Exported:
    """What one file came to."""

    file: Path
    difference: float
    """Largest, absolute, of any output in any check."""
    checks: int
    free_maps: bool
    """Whether maps of other sizes are taken; if not, only those of the first image of the cache."""


class ExportedHead(nn.Module):
    """A head whose inputs and outputs are tensors only."""

    def __init__(self, head: MaskFrozenDetr) -> None:
        super().__init__()
        self.head = head
        all_levels = head.config.image_encoder == "deformable"  # the others read the finest only
        self.maps = (*(["c1"] if head.with_c1 else []), *(head.encoder if all_levels else head.encoder[:1]))
        """Names of the maps, in the order of the inputs."""
        self.outputs = ["mask_logits"] if head.scoring is None else ["mask_logits", "iou"]

    @property
    def inputs(self) -> list[str]:
        """Names, in order."""
        return [*self.maps, "boxes", "queries"]

    def inputs_of(self, sample: Sample) -> tuple[Tensor, ...]:
        """An image as this module takes it."""
        boxes = boxes_in_pixels(sample.features, [sample.boxes])[0]
        return (*(sample.features.maps[name].contiguous() for name in self.maps), boxes, sample.queries)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Maps, boxes and queries as the file's head says -> `outputs`. To be called in `export_mode`."""
        *maps, boxes, queries = inputs
        named = dict(zip(self.maps, maps, strict=True))
        named = dict.fromkeys(self.head.encoder, named[self.head.finest]) | named
        rows = boxes[None]
        features = Features(named, self.head.encoder, self.head.strides, queries[None], rows, rows, rows, rows)
        output = self.head(features, [boxes], [queries])
        return (output.mask_logits,) if output.iou is None else (output.mask_logits, output.iou)


def main(*, cache: Path, run: Path, out: Path, formats: Sequence[Format] = ("pt2", "onnx")) -> list[Exported]:
    """Write head.pt2 and head.onnx into `out`, and inputs.json that describes them; returns what was checked.

    Each file is run on images of the cache, with all detections and with fewer, and compared with the head itself, all
    in float32; one that differs by more than 1e-4 is taken away and a PipelineError tells of it.
    """
    source = Cached(cache)
    head, trained = load_head(run)
    check_features(trained, source.cache.spec, f"cache {cache}")
    if not isinstance(head, MaskFrozenDetr):
        raise PipelineError(
            f"the head of {run} is of family '{trained.recipe.family}', which cannot be exported",
            "heads of family 'mask-frozen-detr' can",
        )
    module = ExportedHead(_plain(head)).eval()
    samples = _samples(source)
    out.mkdir(parents=True, exist_ok=True)
    exported = [_export(kind, module, samples, out / FILES[kind]) for kind in formats]
    sides = ["h", "w"] if all(one.free_maps for one in exported) else []
    shapes: dict[str, list[str | int]] = {}
    for name, value in zip(module.inputs, module.inputs_of(samples[0]), strict=True):
        c = value.shape[1]
        shapes[name] = [1, c, *(sides or value.shape[2:])] if name in module.maps else ["n", c]
    content = {"inputs": shapes, "outputs": module.outputs, "categories": trained.categories}
    write_json(out / "inputs.json", content, indent=2)
    return exported


def _plain(head: MaskFrozenDetr) -> MaskFrozenDetr:
    """The head without a choice by the size of its input, which has no place in a graph, and contiguous in memory."""
    if "neck_path" in {field.name for field in fields(head.config)}:
        head.config = replace(head.config, **cast(Any, {"neck_path": "full"}))
    head.requires_grad_(False)
    return head.to(memory_format=torch.contiguous_format)


def _samples(source: Cached) -> list[Sample]:
    """Some images in float32: the first with all its detections, the others with fewer."""
    view = source.cache.views[0]
    found: list[Sample] = []
    for index in source.finished([view])[:IMAGES]:
        batch = source.batch([(index, view)])
        features = replace(batch.features, maps={name: one.float() for name, one in batch.features.maps.items()})
        n = max(1, batch.counts[0] // (1 + len(found)))
        found.append(Sample(features, features.boxes[0, :n], features.queries[0, :n].float()))
    return found


def _cut(sample: Sample) -> Sample:
    """The left three quarters of an image, whole cells on every level: maps of other sizes."""
    features, coarsest = sample.features, max(sample.features.strides.values())
    h, w = features.input_hw[0].tolist()
    width = coarsest * max(1, w * 3 // 4 // coarsest)
    maps = {name: one[..., : width // features.strides[name]] for name, one in features.maps.items()}
    boxes = sample.boxes * sample.boxes.new_tensor([w / width, 1, w / width, 1])
    return Sample(replace(features, maps=maps, input_hw=torch.tensor([[h, width]])), boxes, sample.queries)


@torch.inference_mode()
def _export(kind: Format, module: ExportedHead, samples: list[Sample], file: Path) -> Exported:
    """One file, with maps of any size if that works, else of the size of the first sample."""
    write, load = (_write_pt2, _load_pt2) if kind == "pt2" else (_write_onnx, _load_onnx)
    free = [*samples, _cut(samples[0])]
    problems: list[str] = []
    for free_maps, checks in ((True, free), (False, [s for s in samples if _sizes(s) == _sizes(samples[0])])):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the exporters' own ways
                write(module, module.inputs_of(samples[0]), file, free_maps)
                run = load(module, file)
                difference = max(_difference(module, run, sample) for sample in checks)
        except ModuleNotFoundError as error:
            raise PipelineError(f"{error.name} is not installed", "pip install 'featcache[onnx]'") from None
        except Exception as error:  # whatever an exporter or runtime cannot do
            problems.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
            continue
        if difference <= MOST:
            return Exported(file, difference, len(checks), free_maps)
        problems.append(f"it differs from the head by {difference:.1e}, more than {MOST:.0e}")
    file.unlink(missing_ok=True)
    raise PipelineError(f"{file.name} did not come out right: {problems[-1]}", f"with free map sizes: {problems[0]}")


def _sizes(sample: Sample) -> list[torch.Size]:
    return [one.shape for one in sample.features.maps.values()]


def _difference(module: ExportedHead, run: Any, sample: Sample) -> float:
    """From what the head says here, as in an evaluation."""
    output = module.head(sample.features, [sample.boxes], [sample.queries])
    expected = [output.mask_logits] if output.iou is None else [output.mask_logits, output.iou]
    given = run(*module.inputs_of(sample))
    return max(float((one - other).abs().max()) for one, other in zip(expected, given, strict=True))


def _write_pt2(module: ExportedHead, sample: tuple[Tensor, ...], file: Path, free_maps: bool) -> None:
    n = torch.export.Dim("n", min=1)
    shapes: list[dict[int, Any]] = []
    for name in module.inputs:
        sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC} if free_maps else {}
        shapes.append(cast(Any, sides if name in module.maps else {0: n}))
    with export_mode():
        program = torch.export.export(module, sample, dynamic_shapes=(tuple(shapes),), strict=False)
    torch.export.save(program, file)


def _load_pt2(module: ExportedHead, file: Path) -> Any:
    del module
    return torch.export.load(file).module()


def _write_onnx(module: ExportedHead, sample: tuple[Tensor, ...], file: Path, free_maps: bool) -> None:
    axes: dict[str, dict[int, str]] = {"boxes": {0: "n"}, "queries": {0: "n"}}
    axes |= {name: {0: "n"} for name in module.outputs}
    if free_maps:
        axes |= {name: {2: f"h_{name}", 3: f"w_{name}"} for name in module.maps}
    with export_mode():
        torch.onnx.export(
            module, sample, file, input_names=module.inputs, output_names=module.outputs, dynamic_axes=axes,
            opset_version=OPSET, dynamo=False, do_constant_folding=False,
        )  # fmt: skip


def _load_onnx(module: ExportedHead, file: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(module.inputs, inputs, strict=True)}
        return [torch.from_numpy(value) for value in cast(Any, session.run(module.outputs, given))]

    return run
