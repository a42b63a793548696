"""Any DETR exported to ONNX as a frozen detector: a TOML names its input, its outputs and the inner tensors to tap.

The taps become graph outputs when the file is loaded, and what only fed the old outputs (post-processing) is dropped.
One dry run then tells every shape, which is compared with the TOML.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from featcache import LevelSpec

from ..config import from_table
from ..data.transforms import Transform, xyxy_to_cxcywh
from ..errors import PipelineError
from .base import Features, top_detections
from .classes import Classes, category_columns
from .device import torch_device


@dataclass(frozen=True)
class Tap:
    """One feature map."""

    name: str
    """In the cache. `c1`: the one of stride 4 that heads add to the encoder's."""
    role: Literal["backbone", "encoder"]
    """Encoder maps are what heads take for the detector's memory, finest first whatever their order here."""
    stride: int
    """Input pixels per cell."""
    tensor: str
    """Its name in the graph, "b c h w"."""


@dataclass(frozen=True)
class Outputs:
    """The tensors that make detections."""

    scores: str
    """Class logits or probabilities, "b q k"."""
    boxes: str
    """In 0-1 of the network input, "b q 4"."""
    queries: str
    """Query embeddings after the last decoder layer, "b q d"."""
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    """`softmax` drops the last column, DETR's "no object"; `none` is for exports that give probabilities."""
    box_format: Literal["cxcywh", "xyxy"] = "cxcywh"
    """Of the tensor `boxes`."""


@dataclass(frozen=True)
class OnnxConfig:
    """The keys of a detector TOML of kind "onnx"."""

    kind: Literal["onnx"]
    name: str
    """Part of the identity of a cache, and in every message."""
    summary: str
    """One line for people; no part of the identity."""
    input: str
    """The image input, float32 "b 3 h w"."""
    transform: Transform
    """What the network sees of an image: the table [transform]."""
    outputs: Outputs
    """Where the detections come from: the table [outputs]."""
    taps: tuple[Tap, ...]
    """Which maps are kept: a table [[taps]] for each."""
    top_k: int = 100
    """Detections kept, over (query, class)."""
    classes: Classes = "contiguous"
    """What the score columns are: the categories by increasing id, COCO's raw ids 0 to 90, or a list of category ids, 0
    for a column that stands for none."""
    sha256: str | None = None
    """Of the weights file; if given, another file is refused."""

    def __post_init__(self) -> None:
        names = [tap.name for tap in self.taps]
        if len(set(names)) < len(names):
            raise ValueError(f"two taps have one name: {', '.join(names)}")
        if not any(tap.role == "encoder" for tap in self.taps):
            raise ValueError("no tap has role = 'encoder'")
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, expected at least 1")

    def identity(self) -> dict[str, Any]:
        """What could change the numbers; not `top_k`, a field of the cache on which no head depends."""
        told_elsewhere = ("summary", "sha256", "top_k")
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in told_elsewhere}


def build(
    table: Mapping[str, Any], file: Path, weights: Path, *, device: str = "cpu", threads: int | None = None
) -> "OnnxDetector":
    """The detector of the TOML table read from `file`; `threads` per operator, None for all cores."""
    return OnnxDetector(from_table(OnnxConfig, table, str(file)), weights, device=device, threads=threads)


class OnnxDetector:
    """See `base.FrozenDetector`; this one runs in onnxruntime."""

    def __init__(self, config: OnnxConfig, weights: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        content = weights.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if config.sha256 not in (None, sha256):
            raise PipelineError(
                f"{weights} is not the file '{config.name}' was written for: sha256 is {sha256[:12]}..",
                "for another export, copy the TOML, change or delete `sha256` and pass it: --detector mine.toml",
            )
        self.config = config
        self.name = config.name
        self.transform = config.transform
        self.encoder = tuple(
            tap.name for tap in sorted(config.taps, key=lambda tap: tap.stride) if tap.role == "encoder"
        )
        self.identity = {**config.identity(), "weights_sha256": sha256}
        self._fetch = [
            config.outputs.scores,
            config.outputs.boxes,
            config.outputs.queries,
            *(tap.tensor for tap in config.taps),
        ]
        self._device = torch_device(device)
        self._session = _session(content, config.input, self._fetch, weights, device, threads)
        self._batch, input_hw = _input_shape(self._session, config, weights)
        self._dry_run(input_hw)

    def detect(self, images: Tensor) -> Features:
        """See `base.FrozenDetector`."""
        config = self.config
        scores, boxes, queries, *maps = self._run(images)
        # image by image: the last bit of a vectorised sigmoid depends on an image's place in the batch, and a resumed
        # extraction batches differently
        probs = torch.stack([_probs(rows, config.outputs.activation)[:, self._columns] for rows in scores])
        if config.outputs.box_format == "xyxy":
            boxes = xyxy_to_cxcywh(boxes)
        top_scores, query, labels = top_detections(probs, self.detections)
        rows = query[:, :, None]
        return Features(
            maps={tap.name: map_ for tap, map_ in zip(config.taps, maps, strict=True)},
            encoder=self.encoder,
            strides={tap.name: tap.stride for tap in config.taps},
            queries=queries.gather(1, rows.expand(-1, -1, queries.shape[2])),
            boxes=boxes.gather(1, rows.expand(-1, -1, 4)),
            scores=top_scores,
            labels=labels,
            input_hw=torch.tensor([list(images.shape[2:])] * len(images), device=self._device),
        )

    def _run(self, images: Tensor) -> list[Tensor]:
        """The fetched tensors of a batch; image by image where the export has a batch of 1 baked in."""
        parts = images.split(self._batch or len(images))
        runs = [self._session.run(self._fetch, {self.config.input: part.numpy(force=True)}) for part in parts]
        if len(runs) > 1:
            runs = [[np.concatenate(tensors) for tensors in zip(*runs, strict=True)]]
        return [torch.from_numpy(tensor).to(self._device) for tensor in runs[0]]

    def _dry_run(self, input_hw: tuple[int, int]) -> None:
        """Set levels, query_dim, classes and detections from what a blank image gives, after checking the shapes."""
        config, names = self.config, self._fetch
        tensors = dict(zip(names, self._run(torch.zeros(1, 3, *input_hw)), strict=True))
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.levels = tuple(_level(tap, shapes[tap.tensor], input_hw, config.name) for tap in config.taps)
        outputs = config.outputs
        for name, letters in ((outputs.scores, "1 q k"), (outputs.boxes, "1 q 4"), (outputs.queries, "1 q d")):
            shape, count = shapes[name], shapes[outputs.scores][1:2]
            if len(shape) != 3 or shape[0] != 1 or shape[1:2] != count or (letters.endswith("4") and shape[2] != 4):
                raise PipelineError(
                    f"{config.name}: '{name}' has shape {shape}, expected \"{letters}\" with one q for all three"
                )
        queries, columns = shapes[outputs.scores][1:]
        self.query_dim = shapes[outputs.queries][2]
        self.category_ids, self._columns = category_columns(
            config.classes, columns - (outputs.activation == "softmax"), config.name, f"'{outputs.scores}'"
        )
        self.classes = len(self._columns)
        self.category_names: tuple[str, ...] | None = None
        self.detections = min(config.top_k, queries * self.classes)


def _probs(scores: Tensor, activation: str) -> Tensor:
    if activation == "softmax":
        return scores.softmax(-1)[..., :-1]
    return scores.sigmoid() if activation == "sigmoid" else scores


def _level(tap: Tap, shape: tuple[int, ...], input_hw: tuple[int, int], name: str) -> LevelSpec:
    expected = [(side // tap.stride, -(-side // tap.stride)) for side in input_hw]
    if len(shape) != 4 or shape[2] not in expected[0] or shape[3] not in expected[1]:
        height, width = (high for _, high in expected)
        raise PipelineError(
            f"{name}: tap '{tap.name}' has shape {shape}, expected (1, c, {height}, {width}) at stride {tap.stride}",
            f"check `stride` and `tensor` of the tap; the tensor is '{tap.tensor}'",
        )
    return LevelSpec(name=tap.name, stride=tap.stride, channels=shape[1], max_hw=(shape[2], shape[3]))


def _session(
    content: bytes, image_input: str, fetch: list[str], weights: Path, device: str, threads: int | None
) -> Any:
    """An onnxruntime session whose outputs are `fetch`."""
    try:
        import onnxruntime as ort

        from .onnx_graph import expose
    except ImportError as error:
        raise PipelineError(
            f"ONNX detectors need the package '{error.name}'", "pip install 'featcache[onnx]'"
        ) from None
    providers = _providers(device, ort.get_available_providers())
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Threads that wait for the next operator at full speed take the cores from what decodes images and writes maps.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # its warnings are about the export, not about anything a user can change here
    session = ort.InferenceSession(expose(content, image_input, fetch, str(weights)), options, providers=providers)
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in session.get_providers():  # it goes on without one that does not load, on the processor
        raise PipelineError(
            f"this onnxruntime does not run on '{device}': its {wanted} does not load",
            f"install the onnxruntime-gpu for the CUDA of torch, {torch.version.cuda}, or pass --device cpu",
        )
    return session


def _providers(device: str, available: list[str]) -> list[Any]:
    kind, _, number = device.partition(":")
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[kind]
    if wanted not in available:
        raise PipelineError(
            f"this onnxruntime cannot run on '{device}' (it has: {', '.join(available)})",
            "pip install onnxruntime-gpu in place of onnxruntime, or pass --device cpu",
        )
    return [(wanted, {"device_id": int(number or 0)})] if kind == "cuda" else [wanted]


def _input_shape(session: Any, config: OnnxConfig, weights: Path) -> tuple[int | None, tuple[int, int]]:
    """The baked-in batch (1) or None, and the size for the dry run."""
    shape = session.get_inputs()[0].shape
    batch, _, *fixed = (side if isinstance(side, int) else None for side in shape)
    if batch not in (None, 1):
        raise PipelineError(f"{weights} has a baked-in batch of {batch}", "export it with batch 1 or a dynamic batch")
    largest = config.transform.largest_hw()
    for side, wanted in zip(fixed, largest, strict=True):
        if side is not None and (config.transform.resize != "square" or side != wanted):
            raise PipelineError(
                f"{weights} takes images of {fixed[0]} x {fixed[1]}, the [transform] of '{config.name}' gives others",
                "set [transform] resize = 'square' and size to what the export takes",
            )
    return batch, largest
