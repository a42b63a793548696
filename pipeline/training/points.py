"""Points inside a box: where the loss looks, and what logits and ground truth are there.

A point is (x, y) in 0-1 of its box. Sampling follows PointRend, as Mask2Former's loss does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_logits(mask_logits: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of "m r r" at "m p 2" -> "m p"; beyond the outer cell centres the outer cells continue."""
    grid = (2 * points - 1)[:, :, None].to(mask_logits.dtype)
    sampled = F.grid_sample(mask_logits[:, None], grid, padding_mode="border", align_corners=False)
    return sampled[:, 0, :, 0]


def uncertain_points(
    mask_logits: Tensor, count: int, oversample: float, importance: float, generator: torch.Generator
) -> Tensor:
    """Points in 0-1 where the mask is undecided, and some anywhere. "m r r" -> "m count 2".

    oversample * count random points are looked at (k); the share `importance` (beta) of `count` is the most uncertain
    of them, the rest is uniform. The generator is on the CPU, so that a run repeats on any device.
    """
    m, device = len(mask_logits), mask_logits.device
    candidates = torch.rand((m, int(count * oversample), 2), generator=generator).to(device)
    chosen = int(count * importance)
    uncertainty = -sample_logits(mask_logits.detach(), candidates).abs()
    best = uncertainty.topk(chosen, dim=1).indices
    undecided = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    anywhere = torch.rand((m, count - chosen, 2), generator=generator).to(device)
    return torch.cat([undecided, anywhere], dim=1)


def grid_points(m: int, side: int, device: torch.device | None = None) -> Tensor:
    """The centres of a side x side grid for each of m boxes, row-major. "m side*side 2" """
    centres = (torch.arange(side, device=device) + 0.5) / side
    points = torch.stack([centres.repeat(side), centres.repeat_interleave(side)], dim=-1)
    return points.expand(m, -1, -1)


def sample_mask(mask: Tensor, box_xyxy: Tensor, points: Tensor) -> Tensor:
    """How much of a mask is under points of a box: bilinear, 0 outside the image.

    mask: "h w" uint8 0 or 1. box_xyxy: "4" in its pixels. points: "p 2" in 0-1 of the box. Returns "p" float32 in 0-1.
    """
    h, w = mask.shape
    low, size = box_xyxy[:2], box_xyxy[2:] - box_xyxy[:2]
    position = low + points * size - 0.5  # a pixel's value stands at its centre
    corner = position.floor()
    right_low = (position - corner).float()
    x0, y0 = corner.long().unbind(-1)
    value = right_low.new_zeros(len(points))
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = x0 + dx, y0 + dy
            inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
            weight = (right_low[:, 0] if dx else 1 - right_low[:, 0]) * (right_low[:, 1] if dy else 1 - right_low[:, 1])
            value += weight * inside * mask[y.clamp(0, h - 1), x.clamp(0, w - 1)]
    return value
