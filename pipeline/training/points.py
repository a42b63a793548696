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
    best = uncertainty.topk(chosen, dim=1).indices
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


def sample_mask(mask: Tensor, box_xyxy: Tensor, points: Tensor) -> Tensor:
    """How much of a mask is under points of a box: bilinear, 0 outside the image.

    mask: "h w" uint8 0 or 1. box_xyxy: "4" in its pixels. points: "p 2" in 0-1 of the box. Returns "p" float32 in 0-1.
    """
    low, size = box_xyxy[:2], box_xyxy[2:] - box_xyxy[:2]
    return sample_masks(mask[None], (low + points * size)[None])[0]


def sample_masks(masks: Tensor, positions: Tensor) -> Tensor:
    """How much of each mask is under points of its image: bilinear, 0 outside.

    masks: "k h w" uint8 0 or 1. positions: (x, y) in its pixels, "k p 2". Returns "k p" float32 in 0-1.
    """
    k, h, w = masks.shape
    positions = positions - 0.5  # a pixel's value stands at its centre
    corners = positions.floor()
    fraction_x, fraction_y = (positions - corners).float().unbind(-1)
    x0, y0 = corners.long().unbind(-1)
    every = torch.arange(k, device=masks.device)[:, None]
    value = torch.zeros_like(fraction_x)
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = x0 + dx, y0 + dy
            inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
            weight = (fraction_x if dx else 1 - fraction_x) * (fraction_y if dy else 1 - fraction_y)
            value += weight * inside * masks[every, y.clamp(0, h - 1), x.clamp(0, w - 1)]
    return value
