"""DETR-family models of `transformers` as frozen detectors, weights and numbers as they are: `hf:DIR`, `hf:OWNER/NAME`.

The encoder maps are what the model documents as `encoder_last_hidden_state`, the queries `last_hidden_state`. C1 has no
documented output; a hook takes it from the backbone's stage 1, or from its stem where stage 1 is coarser than stride 4.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featcache import LevelSpec

from ..errors import PipelineError
from .base import Features, top_detections
from .classes import category_columns
from .device import torch_device
from .hf_checkpoint import Checkpoint, classes_of, load_model, open_checkpoint, transform_of


@dataclass(frozen=True)
class Family:
    """How one architecture gives its features, and chooses its detections."""

    memory: Literal["maps", "tokens"]
    """`encoder_last_hidden_state`: a list of maps "b c h w", or tokens of all levels one after the other, "b s c"."""
    projection: str = ""
    """With tokens: the module, or list of modules, in `model` whose outputs have the grids of the levels."""
    top_k: int | None = None
    """Detections over (query, class) after a sigmoid, as in its own post-processing; None: as many as queries."""
    softmax: bool = False
    """Instead, each query once with its best class; the last column means "no object"."""


HYBRID = Family("maps")
FAMILIES = {
    "deformable_detr": Family("tokens", "input_proj", top_k=100),
    "rt_detr": HYBRID,
    "rt_detr_v2": HYBRID,
    "d_fine": HYBRID,
    "conditional_detr": Family("tokens", "input_projection", top_k=100),
    "detr": Family("tokens", "input_projection", softmax=True),
}
"""`model_type` -> family."""

C1_MODULES = ("layer1", "encoder.stages.0", "embedder")
"""Where C1 may be, best first: stage 1 of timm's ResNets, of `transformers`' ResNets and HGNetV2, their stem."""

STRIDES = (4, 8, 16, 32, 64, 128)


def build(folder_or_id: str, *, device: str = "cpu", threads: int | None = None) -> "HfDetector":
    """The detector of what follows `hf:` in its name.

    `threads` sets the processor threads of torch, for the whole process; None leaves them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return HfDetector(open_checkpoint(folder_or_id), device=device)


class HfDetector:
    """See `base.FrozenDetector`; this one runs a model of `transformers`, in float32."""

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu") -> None:
        self.device = torch_device(device)
        if checkpoint.architecture not in FAMILIES:
            raise PipelineError(
                f"{checkpoint.folder} holds a model of type '{checkpoint.architecture}'",
                f"hf: runs {', '.join(FAMILIES)}; any other DETR can be exported to ONNX",
            )
        self.family = FAMILIES[checkpoint.architecture]
        self.name = checkpoint.name
        self.transform = transform_of(checkpoint)
        if self.family.memory == "maps" and self.transform.resize != "square":
            raise PipelineError(
                f"{self.name}: models of type '{checkpoint.architecture}' take images of one size",
                "write it into preprocessor_config.json, such as size = {height: 640, width: 640}",
            )
        self.network: nn.Module = load_model(checkpoint).to(self.device).eval().requires_grad_(False)
        config: Any = self.network.config
        self.category_ids, self._columns = category_columns(
            classes_of(config.id2label), config.num_labels, self.name, "the model"
        )
        self.classes = len(self._columns)
        names = tuple(config.id2label[column] for column in self._columns)
        unnamed = all(name == f"LABEL_{column}" for name, column in zip(names, self._columns, strict=True))
        self.category_names: tuple[str, ...] | None = None if unnamed else names
        self._projections = _projections(self.network, self.family)
        self._dry_run()
        self.identity: dict[str, Any] = {
            "kind": "hf",
            **checkpoint.identity(),
            "transform": self.transform.to_json(),
            "classes": self._columns,
            "c1": self._c1_path,
        }

    @torch.no_grad()  # not inference mode: a head can be trained on these tensors
    def detect(self, images: Tensor) -> Features:
        """See `base.FrozenDetector`. Boxes are the model's own: nothing clips those that D-FINE puts beyond 0-1."""
        # On a processor image by image: a batch is no faster, its last bits depend on its size, and a resumed
        # extraction batches differently.
        size = 1 if self.device.type == "cpu" else len(images)
        parts = [self._detect(part) for part in images.to(self.device).split(size)]
        maps, detections = ({key: torch.cat([part[i][key] for part in parts]) for key in parts[0][i]} for i in (0, 1))
        return Features(
            maps=maps,
            encoder=self.encoder,
            moments={},
            strides={level.name: level.stride for level in self.levels},
            input_hw=torch.tensor([list(images.shape[2:])] * len(images), device=self.device),
            queries=detections["queries"],
            boxes=detections["boxes"],
            scores=detections["scores"],
            labels=detections["labels"],
        )

    def _detect(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Maps and detections."""
        with outputs_of([self._c1, *self._projections]) as (c1, *projected):
            outputs: Any = self.network(pixel_values=images)
        maps = {"c1": c1[0], **dict(zip(self.encoder, self._memory(outputs, projected), strict=True))}
        probs = outputs.logits.softmax(-1) if self.family.softmax else outputs.logits.sigmoid()
        scores, query, labels = top_detections(
            probs[..., self._columns], self.detections, de_duplicate=self.family.softmax
        )
        rows = query[:, :, None]
        queries, boxes = (
            tensor.gather(1, rows.expand(-1, -1, tensor.shape[2]))
            for tensor in (outputs.last_hidden_state, outputs.pred_boxes)
        )
        return maps, {"queries": queries, "boxes": boxes, "scores": scores, "labels": labels}

    def _memory(self, outputs: Any, projected: Sequence[list[Tensor]]) -> list[Tensor]:
        """The encoder maps "b c h w", fine to coarse; `projected` tells the grids of tokens."""
        memory = outputs.encoder_last_hidden_state
        if self.family.memory == "maps":
            return list(memory)
        grids = [(level.shape[2], level.shape[3]) for found in projected for level in found]
        levels = memory.split([h * w for h, w in grids], dim=1)
        return [level.transpose(1, 2).unflatten(2, grid) for level, grid in zip(levels, grids, strict=True)]

    @torch.no_grad()
    def _dry_run(self) -> None:
        """Set C1, levels, query_dim and detections from what a blank image gives."""
        largest = self.transform.largest_hw()
        # any size tells the strides of a model that takes any; this one is fast, and 320 / 64 is not 256 / 64
        height, width = largest if self.transform.resize == "square" else (256, 320)
        candidates = _c1_candidates(self.network)
        try:
            with outputs_of([*(module for _, module in candidates), *self._projections]) as found:
                outputs: Any = self.network(pixel_values=torch.zeros(1, 3, height, width, device=self.device))
        except RuntimeError as error:
            raise PipelineError(
                f"{self.name} does not run on images of {height} x {width}: {str(error).splitlines()[0]}",
                "check `size` in preprocessor_config.json against config.json",
            ) from None
        memory = self._memory(outputs, found[len(candidates) :])
        strides = [_stride(level, height, width) for level in memory]
        at_stride_4 = [
            (path, module, tensors[0].shape[1])
            for (path, module), tensors in zip(candidates, found, strict=False)
            if tensors and _stride(tensors[0], height, width) == 4
        ]
        if not at_stride_4 or 0 in strides or len(set(strides)) < len(strides):
            raise PipelineError(
                f"{self.name}: its backbone '{type(_backbone(self.network)).__name__}' is not known here",
                f"hf: takes C1 at stride 4 from one of: {', '.join(C1_MODULES)}; export other models to ONNX",
            )
        self._c1_path, self._c1, c1_channels = at_stride_4[0]
        self.encoder = tuple(f"e{stride}" for stride in strides)
        sizes = [("c1", 4, c1_channels), *((f"e{s}", s, m.shape[1]) for s, m in zip(strides, memory, strict=True))]
        self.levels = tuple(
            LevelSpec(name, stride, channels, (-(-largest[0] // stride), -(-largest[1] // stride)))
            for name, stride, channels in sizes
        )
        self.query_dim = int(outputs.last_hidden_state.shape[2])
        queries = int(outputs.logits.shape[1])
        pairs = queries * (1 if self.family.softmax else self.classes)
        self.detections = min(self.family.top_k or queries, pairs)


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[list[Any]]]:
    """What each of the modules returns, call after call, while the context is open."""
    found: list[list[Any]] = [[] for _ in modules]
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, into=into: into.append(output))
        for module, into in zip(modules, found, strict=True)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _projections(network: nn.Module, family: Family) -> list[nn.Module]:
    """The modules whose outputs have the grids of the tokens, fine to coarse."""
    if family.memory == "maps":
        return []
    module = network.get_submodule(f"model.{family.projection}")
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _backbone(network: nn.Module) -> nn.Module:
    """The backbone itself, out of what wraps it: `conv_encoder` in older releases, `_backbone` around timm's."""
    module = network.get_submodule("model.backbone")
    for path in ("conv_encoder", "model", "_backbone"):
        module = getattr(module, path, module)
    return module


def _c1_candidates(network: nn.Module) -> list[tuple[str, nn.Module]]:
    modules = dict(_backbone(network).named_modules())
    return [(path, modules[path]) for path in C1_MODULES if path in modules]


def _stride(level: Any, height: int, width: int) -> int:
    """Input pixels per cell of a map "b c h w"; 0 if it is no such map."""
    if not isinstance(level, Tensor) or level.ndim != 4:
        return 0
    grid = (level.shape[2], level.shape[3])
    return next((s for s in STRIDES if grid == (-(-height // s), -(-width // s))), 0)
