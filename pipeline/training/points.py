"""Points inside a box: where the loss looks, and what logits and ground truth are there.

A point is (x, y) in 0-1 of its box. Sampling follows PointRend, as Mask2Former's loss does.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Beyond = Literal["border", "zeros"]
"""What logits are beyond the outer cell centres: `border` as the outer cells, for in a box a mask may go on outside;
`zeros` undecided at its very edge, as Mask2Former takes the edge of the image."""


def sample_logits(mask_logits: Tensor, points: Tensor, beyond: Beyond = "border") -> Tensor:
    """Bilinear values of "m h w" at "m p 2" -> "m p"."""
    grid = (2 * points - 1)[:, :, None].to(mask_logits.dtype)
    sampled = F.grid_sample(mask_logits[:, None], grid, padding_mode=beyond, align_corners=False)
    return sampled[:, 0, :, 0]


def sample_at(mask_logits: Tensor, points: Tensor) -> Tensor:
    """`sample_logits` of all masks at the same points, zeros beyond. "q h w" at "p 2" -> "q p" """
    grid = (2 * points - 1)[None, :, None].to(mask_logits.dtype)
    return F.grid_sample(mask_logits[None], grid, padding_mode="zeros", align_corners=False)[0, :, :, 0]


def uncertain_points(
    mask_logits: Tensor,
    count: int,
    oversample: float,
    importance: float,
    generator: torch.Generator,
    beyond: Beyond = "border",
) -> Tensor:
    """Points in 0-1 where the mask is undecided, and some anywhere. "m h w" -> "m count 2".

    oversample * count random points are looked at (k); the share `importance` (beta) of `count` is the most uncertain
    of them, the rest is uniform. With a generator on the CPU a run has the same points on any device.
    """
    m, device = len(mask_logits), mask_logits.device
    candidates = random_points((m, int(count * oversample)), generator).to(device)
    chosen = int(count * importance)
    uncertainty = -sample_logits(mask_logits.detach(), candidates, beyond).abs()
    best = uncertainty.topk(chosen, dim=1, sorted=False).indices
    undecided = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    anywhere = random_points((m, count - chosen), generator).to(device)
    return torch.cat([undecided, anywhere], dim=1)


def random_points(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Points anywhere in 0-1, on the device of the generator. "*shape 2" """
    return torch.rand((*shape, 2), generator=generator, device=generator.device)


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on the device whose numbers follow from the next of one on the CPU; on the CPU that one itself.

    For millions of points, whose way from the CPU would take longer than the step.
    """
    if device.type == "cpu":
        return generator
    seed = torch.randint(2**62, (1,), generator=generator).item()
    return torch.Generator(device).manual_seed(int(seed))


def grid_points(m: int, side: int, device: torch.device | None = None) -> Tensor:
    """The centres of a side x side grid for each of m boxes, row-major. "m side*side 2" """
    centres = (torch.arange(side, device=device) + 0.5) / side
    points = torch.stack([centres.repeat(side), centres.repeat_interleave(side)], dim=-1)
    return points.expand(m, -1, -1)


def sample_masks(masks: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """How much of a mask of its image is under each of m sets of points: bilinear, 0 outside.

    masks: "k h w" uint8 0 or 1. rows: which of them each set looks at, int64 "m". positions: (x, y) in pixels,
    "m p 2". Returns "m p" float32 in 0-1.
    """
    h, w = masks.shape[1:]
    return sample_joined(masks.reshape(-1), rows[:, None] * (h * w), h, w, positions)


def sample_joined(values: Tensor, start: Tensor, h: int | Tensor, w: int | Tensor, positions: Tensor) -> Tensor:
    """`sample_masks` of masks of any sizes, joined to one row of pixels: uint8 "s".

    start: where in it the mask of each set begins, int64 "m 1"; h, w: its sides, of all or "m 1".
    """
    positions = positions - 0.5  # a pixel's value stands at its centre
    corners = positions.floor()
    fraction_x, fraction_y = (positions - corners).float().unbind(-1)
    x0, y0 = corners.long().unbind(-1)
    columns = [(_within(x, w), part * _inside(x, w)) for x, part in ((x0, 1 - fraction_x), (x0 + 1, fraction_x))]
    lines = [(_within(y, h), part * _inside(y, h)) for y, part in ((y0, 1 - fraction_y), (y0 + 1, fraction_y))]
    value = torch.zeros_like(fraction_x)
    for y, weight_y in lines:
        line = start + y * w
        for x, weight_x in columns:
            value += weight_y * weight_x * values.take(line + x)
    return value


def _within(index: Tensor, size: int | Tensor) -> Tensor:
    return index.clamp(min=0).clamp(max=size - 1)


def _inside(index: Tensor, size: int | Tensor) -> Tensor:
    return (index >= 0) & (index < size)
