"""H-DETR and DINO as frozen detectors: a TOML of kind "hdetr" or "dino" and a weights file, official or our own."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featcache import LevelSpec

from ..bounds import Count, CountOrZero, check_bounds
from ..config import from_table
from ..data.transforms import Transform
from .base import Features, Part, top_detections
from .checkpoints import load_weights
from .classes import Classes, category_columns, column_ids
from .device import torch_device
from .dino import Dino
from .hdetr import Decoded, HDetr

Backbone = Literal["resnet50", "swin-l-window7", "swin-l-window12", "focalnet-l-fl4", "narrow"]

NO_NUMBERS = ("summary", "top_k", "columns")
"""Keys that change no number: for people; a field of the cache on which no head depends; what the weights tell."""


@dataclass(frozen=True)
class NativeConfig:
    """The keys of a detector TOML of kind "hdetr" or "dino"; the sizes of the network are the official ones."""

    kind: Literal["hdetr", "dino"]
    name: str
    """Part of the identity of a cache, and in every message."""
    summary: str
    """One line for people; no part of the identity."""
    backbone: Backbone
    """Its network; C1 is its stage of stride 4."""
    queries: Count
    """Decoder queries, one-to-one only: 300 or 900 in the official files."""
    transform: Transform
    """What the network sees of an image: the table [transform]."""
    classes: Classes = "coco-91"
    """What the class logits are: COCO's raw ids 0 to 90, the categories by increasing id, or a list of category ids, 0
    for a column that stands for none."""
    columns: CountOrZero = 0
    """How many class logits; only with classes = "contiguous", otherwise told by it."""
    top_k: Count = 100
    """Detections kept, over (query, class)."""
    de_duplicate: bool = False
    """Keep each query once, with its best class."""
    encoder_layer: int = 4
    """Whose output the encoder maps are, from 1; the paper takes the fourth of six (Table 15)."""
    extra_encoder_layers: tuple[int, ...] = ()
    """More of them, stored beside as maps "e8_l2" and so on for layer 2."""
    query_tap: Literal["normed", "raw"] = "normed"
    """DINO: queries after or before the decoder's last norm."""
    amp: Literal["none", "bf16"] = "none"
    """Precision of backbone and input projections; everything after them is float32, as in the official code. `none` is
    float32 too, but for the convolutions on a GPU, which torch computes in TF32."""
    width: Count = 256
    """Channels of encoder and decoder."""
    levels: int = 4
    """Feature levels: 4 (strides 8 to 64), or for DINO also 5 (4 to 64)."""
    encoder_layers: Count = 6
    """Of the transformer."""
    decoder_layers: Count = 6
    """Of the transformer."""
    heads: Count = 8
    """Attention heads of every attention."""
    points: Count = 4
    """Sampling points per head and level."""
    feed_forward: Count = 2048
    """Width inside the feed-forward part of each layer."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if (self.classes == "contiguous") != (self.columns > 0):
            raise ValueError("columns goes with classes = 'contiguous', and only with it")
        for layer in (self.encoder_layer, *self.extra_encoder_layers):
            if not 1 <= layer <= self.encoder_layers:
                raise ValueError(f"encoder layer {layer} is not among 1..{self.encoder_layers}")
        if len({self.encoder_layer, *self.extra_encoder_layers}) <= len(self.extra_encoder_layers):
            raise ValueError("extra_encoder_layers repeats a layer, or names encoder_layer")
        if self.levels != 4 and (self.kind, self.levels) != ("dino", 5):
            raise ValueError(f"levels is {self.levels}, expected 4" + " or 5" * (self.kind == "dino"))
        if self.query_tap != "normed" and self.kind != "dino":
            raise ValueError("query_tap is a choice of kind = 'dino' only")

    @property
    def logits(self) -> int:
        """How many class logits the network has."""
        return self.columns if self.classes == "contiguous" else len(column_ids(self.classes))

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per cell of each encoder level, fine to coarse."""
        return tuple(64 >> level for level in reversed(range(self.levels)))

    def identity(self) -> dict[str, Any]:
        """What could change the numbers."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in NO_NUMBERS}


def build(
    table: Mapping[str, Any], file: Path, weights: Path, *, device: str = "cpu", threads: int | None = None
) -> "NativeDetector":
    """The detector of the TOML table read from `file`.

    `threads` sets the processor threads of torch, for the whole process; None leaves them.
    """
    config = from_table(NativeConfig, table, str(file))
    if threads is not None:
        torch.set_num_threads(threads)
    return NativeDetector(config, weights, device=device)


def build_network(config: NativeConfig) -> HDetr | Dino:
    """The network with random weights."""
    network = {"hdetr": HDetr, "dino": Dino}[config.kind]
    options: dict[str, Any] = {"query_tap": config.query_tap} if config.kind == "dino" else {}
    sizes = ("queries", "width", "levels", "encoder_layers", "decoder_layers", "heads", "points", "feed_forward")
    options |= {key: getattr(config, key) for key in sizes}
    return network(build_backbone(config.backbone), classes=config.logits, **options)


def build_backbone(name: Backbone) -> nn.Module:
    """A backbone with random weights."""
    if name == "resnet50":
        from .backbones.resnet import ResNet50

        return ResNet50()
    if name == "narrow":
        from .backbones.narrow import Narrow

        return Narrow()
    if name == "focalnet-l-fl4":
        from .backbones.focalnet import FOCALNET_L_FL4, FocalNet

        return FocalNet(FOCALNET_L_FL4)
    from .backbones.swin import SWIN_L_WINDOW7, SWIN_L_WINDOW12, Swin

    return Swin(SWIN_L_WINDOW7 if name == "swin-l-window7" else SWIN_L_WINDOW12)


class NativeDetector:
    """See `base.FrozenDetector`; this one runs in PyTorch."""

    def __init__(self, config: NativeConfig, weights: Path, *, device: str = "cpu") -> None:
        self.config, self.device = config, torch_device(device)
        with torch.device("meta"):  # no time or memory for random weights that are replaced at once
            self.network = build_network(config)
        sha256 = load_weights(self.network, config.kind, weights, detector=config.name)
        self.network.to(self.device).eval().requires_grad_(False)
        self.name = config.name
        self.transform = config.transform
        self.query_dim = config.width
        self.identity: dict[str, Any] = {**config.identity(), "weights_sha256": sha256}
        self.category_ids, self._columns = category_columns(config.classes, config.logits, config.name, "the network")
        self.classes = len(self._columns)
        self.category_names: tuple[str, ...] | None = None
        self.detections = min(config.top_k, config.queries * (1 if config.de_duplicate else self.classes))
        self.encoder = tuple(f"e{stride}" for stride in config.strides)
        self.levels = self._levels()

    def _levels(self) -> tuple[LevelSpec, ...]:
        height, width = self.config.transform.largest_hw()
        c1: int = self.network.backbone.channels[0]  # pyright: ignore[reportIndexIssue, reportAssignmentType]
        levels = [("c1", 4, c1)]
        for layer in (self.config.encoder_layer, *self.config.extra_encoder_layers):
            levels += [(self._map_name(s, layer), s, self.config.width) for s in self.config.strides]
        return tuple(
            LevelSpec(name, stride, channels, (-(-height // stride), -(-width // stride)))
            for name, stride, channels in levels
        )

    def _map_name(self, stride: int, layer: int) -> str:
        return f"e{stride}" if layer == self.config.encoder_layer else f"e{stride}_l{layer}"

    def detect(self, images: Tensor, input_hw: Tensor | None = None) -> Features:
        """See `base.FrozenDetector`. With `input_hw` (int64 "b 2"), the right and bottom of each image is padding.

        The detector sees that padding as the official code does in a batch, so its numbers are not those of the image
        alone; padded cells of the maps, which hold nonsense, come back as zero.
        """
        if input_hw is None:
            input_hw = torch.tensor([list(images.shape[2:])] * len(images))
        images, input_hw = images.to(self.device), input_hw.to(self.device)
        parts = [self._detect(*part) for part in self._split(images, input_hw)]
        # outside inference mode, as ordinary tensors on which a head can be trained
        return self._features(parts, input_hw)

    def let_learn(self, part: Part) -> None:
        """See `base.LearningDetector`. The numbers of a batch norm stay those of the pre-training, its weights too."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(part == "all" or (part == "transformer" and not name.startswith("backbone.")))
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def learn(self, images: Tensor) -> tuple[Features, list[Decoded]]:
        """See `base.LearningDetector`. Boxes and scores have no graph: they choose what the head looks at."""
        images = images.to(self.device)
        input_hw = torch.tensor([list(images.shape[2:])] * len(images), device=self.device)
        outputs = [(self._decode(*part), part[1]) for part in self._split(images, input_hw)]
        features = self._features([self._taps(*output) for output in outputs], input_hw)
        return replace(features, boxes=features.boxes.detach(), scores=features.scores.detach()), [
            d for d, _ in outputs
        ]

    def columns(self, labels: Tensor) -> Tensor:
        """See `base.LearningDetector`."""
        return torch.tensor(self._columns, device=labels.device)[labels]

    def _split(self, images: Tensor, input_hw: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        # On a processor image by image: a batch is no faster, its last bits depend on its size, and a resumed
        # extraction batches differently.
        size = 1 if self.device.type == "cpu" else len(images)
        return zip(images.split(size), input_hw.split(size), strict=True)

    def _features(self, parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]], input_hw: Tensor) -> Features:
        maps, detections = ({key: torch.cat([part[i][key] for part in parts]) for key in parts[0][i]} for i in (0, 1))
        return Features(
            maps=maps,
            encoder=self.encoder,
            strides={level.name: level.stride for level in self.levels},
            input_hw=input_hw,
            queries=detections["queries"],
            boxes=detections["boxes"],
            scores=detections["scores"],
            labels=detections["labels"],
        )

    @torch.inference_mode()
    def _detect(self, images: Tensor, input_hw: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self._taps(self._decode(images, input_hw), input_hw)

    def _decode(self, images: Tensor, input_hw: Tensor) -> Decoded:
        half = torch.autocast(self.device.type, torch.bfloat16) if self.config.amp == "bf16" else nullcontext()
        with half:
            return self.network(images, padding_mask(input_hw, images.shape[2], images.shape[3]))

    def _taps(self, decoded: Decoded, input_hw: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Maps with zeroed padding, and detections."""
        maps = self._maps(decoded)
        for name, (level, stride) in ((level.name, (maps[level.name], level.stride)) for level in self.levels):
            valid_hw = -(-input_hw // stride)
            maps[name] = level.masked_fill(padding_mask(valid_hw, *level.shape[2:])[:, None], 0)
        probs = decoded.logits[-1].sigmoid()[..., self._columns]
        scores, query, labels = top_detections(probs, self.detections, de_duplicate=self.config.de_duplicate)
        rows = query[:, :, None]
        queries, boxes = (
            tensor.gather(1, rows.expand(-1, -1, tensor.shape[2])) for tensor in (decoded.states[-1], decoded.boxes[-1])
        )
        return maps, {"queries": queries, "boxes": boxes, "scores": scores, "labels": labels}

    def _maps(self, decoded: Decoded) -> dict[str, Tensor]:
        maps = {"c1": decoded.c1.float()}
        for layer in (self.config.encoder_layer, *self.config.extra_encoder_layers):
            levels = decoded.pyramid.split(decoded.memory[layer - 1])
            maps |= {self._map_name(s, layer): level for s, level in zip(self.config.strides, levels, strict=True)}
        return maps


def padding_mask(valid_hw: Tensor, height: int, width: int) -> Tensor:
    """True right of and below the valid part of each map. int64 "b 2" -> bool "b height width" """
    rows = torch.arange(height, device=valid_hw.device) >= valid_hw[:, :1]
    columns = torch.arange(width, device=valid_hw.device) >= valid_hw[:, 1:]
    return rows[:, :, None] | columns[:, None]
