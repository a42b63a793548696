"""A run -> its head as one file that needs none of this project: torch.export (.pt2) and ONNX, both checked on a cache.

Inputs and outputs, of one image: `heads/exported.py`, and inputs.json beside the files. The number of boxes is free,
and so are the sizes of the maps where the head's operators let them be. A .pt2 wants `import torchvision` before it is
loaded, for RoIAlign; onnxruntime has its own.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .data.sources import Cached
from .errors import PipelineError
from .files import write_json
from .heads.base import MaskHead
from .heads.export_mode import export_mode
from .heads.exported import ExportedHead, Sample, exported_head
from .heads.mask_frozen_detr import MaskFrozenDetr
from .training.checkpoint import check_features, load_head

Format = Literal["pt2", "onnx"]
FILES: dict[Format, str] = {"pt2": "head.pt2", "onnx": "head.onnx"}
MOST = 1e-4
"""Largest difference from the head itself with which an export passes: absolute for outputs up to 1, beyond that a
share of the output's largest value."""
IMAGES = 4
"""Of the cache, that it is checked on, the first that are `_steady` of four times as many."""
ROUNDING = 1e-6
"""About how far sums in another order move the numbers of a head, as a share of them."""
OPSET = 17


@dataclass(frozen=True)
class Exported:
    """What one file came to."""

    file: Path
    difference: float
    """Largest, of any output in any check; see `MOST`."""
    checks: int
    free_maps: bool
    """Whether maps of other sizes are taken; if not, only those of the first image of the cache."""


def main(*, cache: Path, run: Path, out: Path, formats: Sequence[Format] = ("pt2", "onnx")) -> list[Exported]:
    """Write head.pt2 and head.onnx into `out`, and inputs.json that describes them; returns what was checked.

    Each file is run on images of the cache, with all detections and with fewer, and compared with the head itself, all
    in float32; one that differs by more than 1e-4 is taken away and a PipelineError tells of it. Images on which the
    head's own choices hang on rounding are left out.
    """
    source = Cached(cache)
    head, trained = load_head(run)
    check_features(trained, source.cache.spec, f"cache {cache}")
    module = exported_head(_plain(head), trained.recipe.family).eval()
    samples = [sample for sample in _samples(source, module.maps, 4 * IMAGES) if _steady(module, sample)][:IMAGES]
    if not samples:
        raise PipelineError(
            f"cache {cache} has no image to check an export on: of each, rounding errors change what the head says",
            "train the head, or take a cache of other images",
        )
    out.mkdir(parents=True, exist_ok=True)
    exported = [_export(kind, module, samples, out / FILES[kind]) for kind in formats]
    sides = ["h", "w"] if all(one.free_maps for one in exported) else []
    shapes: dict[str, list[str | int]] = {}
    for name, value in zip(module.inputs, module.inputs_of(samples[0]), strict=True):
        own = value.shape[1:]
        shapes[name] = [1, own[0], *(sides or own[1:])] if name in module.maps else ["n", *own]
    content = {"inputs": shapes, "outputs": module.outputs, "boxes": module.boxes, "categories": trained.categories}
    write_json(out / "inputs.json", content, indent=2)
    return exported


def _plain(head: MaskHead) -> MaskHead:
    """The head without a choice by the size of its input, which has no place in a graph, and contiguous in memory."""
    if isinstance(head, MaskFrozenDetr):
        head.config = replace(head.config, neck_path="full")
    head.requires_grad_(False)
    return head.to(memory_format=torch.contiguous_format)


def _samples(source: Cached, maps: Sequence[str], count: int) -> Iterator[Sample]:
    """The first images with these maps, in float32: the very first with all its detections, the others with fewer."""
    view = source.cache.views[0]
    for number, index in enumerate(source.finished([view])[:count]):
        batch = source.batch([(index, view)], maps)
        features = replace(batch.features, maps={name: one.float() for name, one in batch.features.maps.items()})
        n = max(1, batch.counts[0] // (1 + number % IMAGES))
        yield Sample(
            features,
            features.boxes[0, :n],
            features.queries[0, :n].float(),
            features.labels[0, :n],
            features.scores[0, :n],
        )


@torch.inference_mode()
def _steady(module: ExportedHead, sample: Sample) -> bool:
    """Whether the head says the same of maps that are moved by about a rounding error.

    Heads choose: the best tokens, where a mask is above 0. What two candidates of nearly one value decide is another
    in every runtime, and no sign of a wrong graph.
    """
    generator = torch.Generator().manual_seed(0)
    said = module.expected(sample)
    for _ in range(3):
        maps = {
            name: one * (1 + ROUNDING * torch.randn(one.shape, generator=generator))
            for name, one in sample.features.maps.items()
        }
        moved = replace(sample, features=replace(sample.features, maps=maps))
        if _difference(module, said, module.expected(moved)) > MOST:
            return False
    return True


def _cut(sample: Sample) -> Sample:
    """The left three quarters of an image, whole cells on every level: maps of other sizes."""
    features, coarsest = sample.features, max(sample.features.strides.values())
    h, w = features.input_hw[0].tolist()
    width = coarsest * max(1, w * 3 // 4 // coarsest)
    maps = {name: one[..., : width // features.strides[name]] for name, one in features.maps.items()}
    boxes = sample.boxes * sample.boxes.new_tensor([w / width, 1, w / width, 1])
    return replace(sample, features=replace(features, maps=maps, input_hw=torch.tensor([[h, width]])), boxes=boxes)


@torch.inference_mode()
def _export(kind: Format, module: ExportedHead, samples: list[Sample], file: Path) -> Exported:
    """One file, with maps of any size if that works, else of the size of the first sample."""
    write, load = (_write_pt2, _load_pt2) if kind == "pt2" else (_write_onnx, _load_onnx)
    free = [*samples, *(cut for cut in (_cut(samples[0]),) if _steady(module, cut))]
    problems: list[str] = []
    for free_maps, checks in ((True, free), (False, [s for s in samples if _sizes(s) == _sizes(samples[0])])):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the exporters' own ways
                write(module, module.inputs_of(samples[0]), file, free_maps)
                run = load(module, file)
                difference = max(_check(module, run, sample) for sample in checks)
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


def _check(module: ExportedHead, run: Any, sample: Sample) -> float:
    """How far the file is from what the head says here, as in an evaluation; see `MOST`."""
    return _difference(module, module.expected(sample), run(*module.inputs_of(sample)))


def _difference(module: ExportedHead, said: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Largest, of any output; see `MOST`."""
    if [one.shape for one in said] != [one.shape for one in other]:
        return float("inf")
    if module.by_rank:
        other = _paired(said, other)
    pairs = zip(said, other, strict=True)
    return max(float((one - two).abs().max() / one.abs().max().clamp(min=1)) for one, two in pairs)


def _paired(said: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    """`other` with its rows in the order in which, one by one, they are nearest to those of `said`."""
    apart = sum(
        torch.cdist(one.flatten(1).double(), two.flatten(1).double()) for one, two in zip(said, other, strict=True)
    )
    rows = linear_sum_assignment(np.asarray(apart))[1]
    return [one[rows] for one in other]


def _write_pt2(module: ExportedHead, sample: tuple[Tensor, ...], file: Path, free_maps: bool) -> None:
    n = torch.export.Dim("n", min=1)
    shapes: list[dict[int, Any]] = []
    for name in module.inputs:
        sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC} if free_maps else {}
        shapes.append(cast(Any, sides if name in module.maps else {0: n}))
    with export_mode():
        # Asserts at run time, because the solver of PyTorch 2.11 does not see that min(n, 4 n) is n.
        program = torch.export.export(
            module, sample, dynamic_shapes=(tuple(shapes),), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
    torch.export.save(program, file)


def _load_pt2(module: ExportedHead, file: Path) -> Any:
    del module
    return torch.export.load(file).module()


def _write_onnx(module: ExportedHead, sample: tuple[Tensor, ...], file: Path, free_maps: bool) -> None:
    axes: dict[str, dict[int, str]] = {name: {0: "n"} for name in module.rows}
    if module.per_detection:
        axes |= {name: {0: "n"} for name in module.outputs}
    if free_maps:
        axes |= {name: {2: f"h_{name}", 3: f"w_{name}"} for name in module.maps}
    with export_mode():
        # By tracing. The newer exporter (dynamo=True) needs onnxscript, a dependency more, and starts from the same
        # torch.export program as the .pt2; the extra `onnx` does without it.
        torch.onnx.export(
            module, sample, file, input_names=module.inputs, output_names=list(module.outputs), dynamic_axes=axes,
            opset_version=OPSET, dynamo=False, do_constant_folding=False,
        )  # fmt: skip


def _load_onnx(module: ExportedHead, file: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(module.inputs, inputs, strict=True)}
        return [torch.from_numpy(value) for value in cast(Any, session.run(list(module.outputs), given))]

    return run
