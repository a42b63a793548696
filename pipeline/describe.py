"""A head at the widths of a detector -> its parameters and multiply-adds, part by part. No weights, no image.

The head runs once on tensors that have shapes but no values, so what is counted is what the code does, for any head.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from featcache import CacheSpec, LevelSpec

from .config import from_table
from .data.panoptic import SegmentClass
from .data.sources import Cached
from .data.transforms import Transform
from .detectors.base import Features
from .detectors.registry import CARD, HF, build_detector, detector_table
from .errors import UsageError
from .heads.base import Widths
from .heads.registry import build_head
from .macs import macs_by_part
from .training.ablation import load_ablation
from .training.recipe import Recipe, load_recipe, override

MEAN_IMAGE_HW = (450, 639)
"""Stands for COCO's images: resized to 800 x 1136 it has 14,200 cells at stride 8 and 56,800 at stride 4, which are
their means, as the multiply-adds in the tables of Mask Frozen-DETR tell."""

STUFF = 53
"""Classes of stuff in COCO's panoptic annotations, beside the detector's classes, which are its things."""

DETECTOR = "hdetr-r50"
"""Whose widths a head is described at if nobody says: that of most of the paper's tables."""


@dataclass(frozen=True)
class Inputs:
    """What one image gives to a head."""

    widths: Widths
    detections: int
    input_hw: tuple[int, int]
    """Height and width of the network input."""

    @classmethod
    def of_cache(cls, spec: CacheSpec) -> "Inputs":
        """As of the features in a cache, for an image of mean size."""
        transform = from_table(Transform, spec.source["transform"], "the cache")
        return cls(Widths.of_cache(spec), spec.detections, transform.network_hw(MEAN_IMAGE_HW))


@dataclass(frozen=True)
class Cost:
    """Of a head or a part of it, for one image."""

    params: int
    macs: int
    """Multiply-adds as papers count them: matrix products, convolutions, RoIAlign and upsampling. Not what is small
    beside them: norms, activations, additions, the sampling inside deformable attention (about 3 % of its layers)."""


@dataclass(frozen=True)
class Description:
    """A head by name, and the cost of it."""

    name: str
    params: int
    macs: int
    parts: Mapping[str, Cost]
    """In the order of the data; what costs nothing is left out."""


def main(
    *,
    head: str,
    settings: Mapping[str, Any] | None = None,
    detector: str | None = None,
    weights: Path | None = None,
    cache: Path | None = None,
) -> Description:
    """What a named head or a TOML costs, changed by `settings` as in `train`.

    At the widths of the features in `cache`, or else of `detector`, for which `detector_inputs` says when it needs
    `weights`.
    """
    recipe = override(load_recipe(head), settings or {})
    return describe(recipe, _inputs(detector or DETECTOR, weights, cache))


def describe_ablation(
    *, ablation: str, detector: str | None = None, weights: Path | None = None, cache: Path | None = None
) -> list[tuple[Description, Mapping[str, float]]]:
    """Each row of an ablation with its published cells; each at the widths of its own detector where none is given."""
    rows = load_ablation(ablation).rows
    names = [detector or row.detector for row in rows]
    inputs = {name: _inputs(name, weights, cache) for name in set(names)}
    return [(describe(row.recipe, inputs[name]), row.paper) for row, name in zip(rows, names, strict=True)]


def parts_table(description: Description) -> list[dict[str, str]]:
    """A line for each part and one for the whole, in millions and billions."""
    costs = {**description.parts, description.name: Cost(description.params, description.macs)}
    return [
        {"part": name, "params (M)": f"{cost.params / 1e6:.3f}", "multiply-adds (G)": f"{cost.macs / 1e9:.3f}"}
        for name, cost in costs.items()
    ]


def comparison(rows: Sequence[tuple[Description, Mapping[str, float]]]) -> list[dict[str, str]]:
    """A line for each row of an ablation, the published figures beside ours where there are any."""
    columns = (("params (M)", "params", 1e6), ("multiply-adds (G)", "gflops", 1e9))
    published = [cell for _, cell, _ in columns if any(cell in paper for _, paper in rows)]
    table: list[dict[str, str]] = []
    for description, paper in rows:
        line = {"row": description.name}
        for title, cell, unit in columns:
            line[title] = f"{(description.params if cell == 'params' else description.macs) / unit:.2f}"
            if cell in published:
                line[f"published {cell}"] = f"{paper[cell]:.2f}" if cell in paper else "-"
        table.append(line)
    return table


def _inputs(detector: str, weights: Path | None, cache: Path | None) -> Inputs:
    if cache is None:
        return detector_inputs(detector, weights)
    if weights is not None:
        raise UsageError("the cache tells the widths already", "leave out --weights")
    return Inputs.of_cache(Cached(cache).cache.spec)


def describe(recipe: Recipe, inputs: Inputs) -> Description:
    """Parameters and multiply-adds of a head for one image."""
    with torch.random.fork_rng(devices=[]):  # the weights are drawn, but of no use
        head = build_head(recipe.family, recipe.head, inputs.widths).eval().requires_grad_(False)
    features = _blank_features(inputs)
    macs = macs_by_part(head, features)
    params: dict[str, int] = {}
    for name, parameter in head.named_parameters():
        part = name.partition(".")[0]
        params[part] = params.get(part, 0) + parameter.numel()
    names = [name for name, _ in head.named_children()]
    names += [name for name in (*params, *macs) if name not in names]
    parts = {name: Cost(params.get(name, 0), macs.get(name, 0)) for name in dict.fromkeys(names)}
    return Description(
        name=recipe.name,
        params=sum(params.values()),
        macs=sum(macs.values()),
        parts={name: cost for name, cost in parts.items() if cost != Cost(0, 0)},
    )


def detector_inputs(name_or_file: str, weights: Path | None = None) -> Inputs:
    """What a detector gives to a head. A native one is read from its TOML; any other is loaded with its weights."""
    if not name_or_file.startswith(HF):
        table, file = detector_table(name_or_file)
        if table["kind"] in ("hdetr", "dino"):
            if weights is not None:
                raise UsageError(f"the TOML of '{name_or_file}' tells the widths already", "leave out --weights")
            return _native_inputs({key: value for key, value in table.items() if key not in CARD}, file)
    detector = build_detector(name_or_file, weights)
    return Inputs(
        widths=_widths(detector.levels, detector.encoder, detector.query_dim, detector.classes, 0),
        detections=detector.detections,
        input_hw=detector.transform.network_hw(MEAN_IMAGE_HW),
    )


def _native_inputs(table: Mapping[str, Any], file: Path) -> Inputs:
    """Every layer of the encoder counts as stored: which of them are is for extraction to choose."""
    from .detectors.classes import category_columns
    from .detectors.native import NativeConfig, build_backbone

    config = from_table(NativeConfig, table, str(file))
    with torch.device("meta"):
        c1: int = build_backbone(config.backbone).channels[0]  # pyright: ignore[reportIndexIssue, reportAssignmentType]
    encoder = tuple(f"e{stride}" for stride in config.strides)
    levels = [LevelSpec("c1", 4, c1, (1, 1))]
    for layer in range(1, config.encoder_layers + 1):
        suffix = "" if layer == config.encoder_layer else f"_l{layer}"
        levels += [LevelSpec(f"e{stride}{suffix}", stride, config.width, (1, 1)) for stride in config.strides]
    _, columns = category_columns(config.classes, config.logits, config.name, "the network")
    return Inputs(
        widths=_widths(levels, encoder, config.width, len(columns), config.encoder_layer),
        detections=min(config.top_k, config.queries * (1 if config.de_duplicate else len(columns))),
        input_hw=config.transform.network_hw(MEAN_IMAGE_HW),
    )


def _widths(
    levels: list[LevelSpec] | tuple[LevelSpec, ...],
    encoder: tuple[str, ...],
    query_dim: int,
    classes: int,
    encoder_layer: int,
) -> Widths:
    return Widths(
        channels={level.name: level.channels for level in levels},
        strides={level.name: level.stride for level in levels},
        encoder=encoder,
        query_dim=query_dim,
        classes=classes,
        segments=(
            *(SegmentClass(label, True, label) for label in range(classes)),
            *(SegmentClass(classes + number, False, -1) for number in range(STUFF)),
        ),
        encoder_layer=encoder_layer,
    )


def _blank_features(inputs: Inputs) -> Features:
    """One image's features: shapes only, but for the size of the image."""
    widths, n = inputs.widths, inputs.detections
    h, w = inputs.input_hw
    grids = {name: (math.ceil(h / stride), math.ceil(w / stride)) for name, stride in widths.strides.items()}
    with FakeTensorMode(allow_non_fake_inputs=True):  # the weights, and grids of positions, are real
        maps = {name: torch.empty(1, channels, *grids[name]) for name, channels in widths.channels.items()}
        queries, boxes, scores = torch.empty(1, n, widths.query_dim), torch.empty(1, n, 4), torch.empty(1, n)
    return Features(
        maps=maps,
        encoder=widths.encoder,
        strides=widths.strides,
        queries=queries,
        boxes=boxes,
        scores=scores,
        labels=torch.zeros(1, n, dtype=torch.int64),
        input_hw=torch.tensor([[h, w]]),
    )
