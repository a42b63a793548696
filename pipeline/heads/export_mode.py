"""How heads run while they are exported: one image, no padding, operators that other runtimes have."""

import builtins
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from ..detectors.base import Features
from ..detectors.deformable import DeformableAttention
from ..ops.level import Level
from ..ops.roi_align import SAMPLING_RATIO
from . import baseline, swin
from .mask_dino import readout
from .mask_frozen_detr import box_encoder, head, image_encoder, query_encoder


@contextmanager
def export_mode() -> Iterator[None]:
    """Inside, heads take boxes as xyxy in pixels, of one image, and keep their number and the maps' sizes symbols.

    RoIAlign is torchvision's operator, for which ONNX has its own; heads of several images choose by sizes and counts,
    which would be frozen into the graph. Not for several threads at once.
    """
    changes: list[tuple[Any, str, Any]] = [
        *((module, "roi_align", _roi_align) for module in (head, baseline)),
        *((module, "boxes_in_pixels", _as_they_are) for module in (head, baseline)),
        *((module, "pool_without_padding", _at_once) for module in (head, baseline)),
        (query_encoder.ObjectToObject, "forward", _attend),
        (DeformableAttention, "forward", _attend_to_points),
        *((module, "cell_centres", _cell_centres) for module in (box_encoder, image_encoder)),
        *((module, "len", _length) for module in (head, image_encoder, swin)),
        (readout, "min", _least),
        (torch, "autocast", _as_it_is),
    ]
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            if value is None:  # a name of the language, hidden for the while
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _roi_align(
    levels: Sequence[Level | tuple[Tensor, float]],
    boxes: Sequence[Tensor],
    size: int,
    *,
    aligned: bool = True,
    sampling_ratio: int = SAMPLING_RATIO,
    upsample: str = "bilinear",
) -> Tensor:
    """See `ops.roi_align`; float maps of one image."""
    maps = [(one.values, one.stride) if isinstance(one, Level) else one for one in levels]
    if upsample == "bilinear":
        total, stride = maps[0]
        for coarse, _ in maps[1:]:
            total = total + F.interpolate(coarse, size=total.shape[-2:], mode="bilinear", align_corners=False)
        maps = [(total, stride)]
    rois = F.pad(boxes[0], (1, 0))  # all of image 0
    pooled = [torchvision.ops.roi_align(one, rois, size, 1 / s, sampling_ratio, aligned=aligned) for one, s in maps]
    return sum(pooled[1:], start=pooled[0])


def _as_they_are(features: Features, boxes: list[Tensor]) -> list[Tensor]:
    return boxes


def _at_once(pool: Callable[[Features, list[Tensor]], Tensor], features: Features, boxes: list[Tensor]) -> Tensor:
    return pool(features, boxes)


def _attend(self: Any, queries: Tensor, regions: Tensor, positions: Tensor, counts: list[int]) -> Tensor:
    """`ObjectToObject` where all queries are of one image."""
    asking = queries + self.position(positions)
    found = self.attention(asking[None], asking[None], queries[None], need_weights=False)[0]
    return self.norm(queries + found[0])


def _attend_to_points(
    self: Any,
    queries: Tensor,
    tokens: Tensor,
    references: Tensor,
    shapes: Sequence[tuple[int, int]],
    padding: Tensor | None = None,
) -> Tensor:
    """`DeformableAttention` around points or in boxes, no size of a tensor written into the graph, nothing padding."""
    del padding
    heads, levels, points = self.heads, self.levels, self.points
    value = self.value_proj(tokens).transpose(1, 2).unflatten(1, (heads, -1)).flatten(0, 1)  # "(b m) d s"
    offsets = self.sampling_offsets(queries).unflatten(2, (heads, levels, points, 2))  # "b q m l p 2"
    weights = self.attention_weights(queries).unflatten(2, (heads, levels * points)).softmax(-1)
    sampled: list[Tensor] = []
    start = 0
    for level, (h, w) in enumerate(shapes):
        centre, ring = references[:, :, None, level, None], offsets[:, :, :, level]
        if references.shape[-1] == 4:  # boxes
            x, y = ((centre[..., i] + ring[..., i] / points * centre[..., 2 + i] * 0.5) for i in (0, 1))
        else:
            x, y = centre[..., 0] + ring[..., 0] / w, centre[..., 1] + ring[..., 1] / h  # "b q m p"
        grid = (2 * torch.stack([x, y], dim=-1) - 1).transpose(1, 2).flatten(0, 1)  # "(b m) q p 2"
        maps = value[:, :, start : start + h * w].unflatten(2, (h, w))
        sampled.append(F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False))
        start = start + h * w
    mix = weights.transpose(1, 2).flatten(0, 1)[:, None]  # "(b m) 1 q (l p)"
    mixed = (torch.cat(sampled, dim=3) * mix).sum(-1).unflatten(0, (-1, heads)).flatten(1, 2)  # "b (m d) q"
    return self.output_proj(mixed.transpose(1, 2))


def _cell_centres(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """See `deformable.cell_centres`."""
    y = (torch.arange(h, device=device, dtype=torch.float32) + 0.5) / h
    x = (torch.arange(w, device=device, dtype=torch.float32) + 0.5) / w
    return torch.stack(torch.broadcast_tensors(x[None], y[:, None]), dim=-1).flatten(0, 1)


def _length(thing: Any) -> Any:
    """`len` that does not turn the symbol of a tensor's size into a number."""
    return thing.shape[0] if isinstance(thing, torch.Tensor) else builtins.len(thing)


def _as_it_is(*given: Any, **options: Any) -> AbstractContextManager[None]:
    """In place of `torch.autocast`, of which a graph has no node: everything is float32 anyway."""
    return nullcontext()


def _least(count: int, size: Any) -> Any:
    """`min` of a number and of a tensor's size, which stays a symbol."""
    return torch.minimum(torch.tensor(count), size) if isinstance(size, Tensor) else torch.sym_min(count, size)
