"""Multi-scale deformable attention: each query samples a few points of every level and mixes what it finds there."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PipelineError
from . import ms_deform_attn_cuda
from .ms_deform_attn_op import ms_deform_attn_op


def ms_deform_attn(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, Deformable DETR eq. (3).

    value: "b s m d", the tokens of all levels one after the other (row-major), m heads of d channels.
    shapes: (h, w) of each of the l levels; s is the sum of h * w.
    locations: "b q m l p 2", (x, y) in 0-1 of each level; samples outside read zero.
    weights: "b q m l p", summing to one over l and p.
    Returns "b q (m d)" in the dtype of `value`.

    Our own operator on the CPU and on a GPU that our kernels can run on; by `grid_sample` elsewhere and in models that
    are exported, which hold no operator of ours. Raises PipelineError where the shapes contradict each other.
    """
    _check(value, shapes, locations, weights)
    exported = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
    if not exported and (value.device.type == "cpu" or not ms_deform_attn_cuda.unable(value, shapes)):
        return ms_deform_attn_op(value, shapes, locations, weights)
    return by_grid_sample(value, shapes, locations, weights)


def by_grid_sample(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """`ms_deform_attn` in plain PyTorch, level by level: the samples of all points, then their sum."""
    b, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    exact = torch.promote_types(value.dtype, locations.dtype)  # in half precision points would be off by whole cells
    grids = 2 * locations.to(exact) - 1
    sampled: list[Tensor] = []
    tokens = value.split([h * w for h, w in shapes], dim=1)
    for level, (h, w) in enumerate(shapes):
        maps = tokens[level].to(exact).permute(0, 2, 3, 1).reshape(b * heads, channels, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).reshape(b * heads, queries, points, 2)
        sampled.append(F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False))
    samples = torch.cat(sampled, dim=3)  # "(b m) d q (l p)"
    mix = weights.transpose(1, 2).reshape(b * heads, 1, queries, len(shapes) * points)
    mixed = (samples * mix).sum(-1).view(b, heads * channels, queries)
    return mixed.transpose(1, 2).to(value.dtype)


def _check(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    b, tokens, heads, _ = value.shape
    wanted = (b, heads, len(shapes), 2)
    found = locations.shape[0], *locations.shape[2:4], locations.shape[5]
    if found != wanted or weights.shape != locations.shape[:-1] or tokens != sum(h * w for h, w in shapes):
        tensors = ", ".join(str(tuple(one.shape)) for one in (value, locations, weights))
        raise PipelineError(f"deformable attention over {list(shapes)}: value, locations and weights are {tensors}")
    if not value.device == locations.device == weights.device:  # a kernel would read addresses that are none to it
        raise PipelineError(
            f"deformable attention of values on {value.device}, locations on {locations.device} and weights on "
            f"{weights.device}",
            "move them to one device",
        )
