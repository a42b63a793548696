"""RoI mask logits -> the original image -> RLE, and the way back. The only place where masks change their grid.

A RoI of r x r cells divides its box evenly: cell i spans [i, i + 1] / r of the box, its value sits at the centre.
Logits, not probabilities or masks, are resized, and cut at 0 (probability one half) once, on the pixels of the image.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.transforms import view_to_original
from ..data.views import View, as_view
from . import rle
from .rle import Mask

Weights = NDArray[np.float64]


def paste(mask_logits: Tensor, boxes: Tensor, image_hw: tuple[int, int], view: View | str = "orig") -> list[bytes]:
    """Compressed counts of the masks of one image, in the frame of the original image.

    mask_logits: "n r r" before sigmoid, in the frame of each box. boxes: "n 4" cxcywh in 0-1 of `view`. A mask covers
    only pixels whose centre lies in its box, so a box without any gives an empty mask.
    """
    return [counts for counts, _ in _pasted(mask_logits, boxes, image_hw, view)]


def paste_and_judge(
    mask_logits: Tensor, boxes: Tensor, image_hw: tuple[int, int], view: View | str = "orig"
) -> tuple[list[bytes], Tensor]:
    """`paste`, and the quality of each mask on the pixels of the image: `mask_quality` of what is pasted, "n"."""
    counts: list[bytes] = []
    quality: list[float] = []
    for one, values in _pasted(mask_logits, boxes, image_hw, view):
        counts.append(one)
        inside = values[values > 0]
        quality.append(float((1 / (1 + np.exp(-inside))).mean()) if inside.size else 0.0)
    return counts, torch.tensor(quality, dtype=torch.float32)


def _pasted(
    mask_logits: Tensor, boxes: Tensor, image_hw: tuple[int, int], view: View | str
) -> Iterator[tuple[bytes, Weights]]:
    """Compressed counts of each mask, and its logits on the pixels of its box."""
    logits = mask_logits.detach().float().cpu().numpy()
    if as_view(view, image_hw).mirrored:
        logits = logits[..., ::-1]
    boxes_xyxy = view_to_original(boxes.detach().cpu(), image_hw, view).tolist()
    canvas = np.zeros(image_hw, dtype=np.uint8, order="F")
    for one, (x0, y0, x1, y1) in zip(logits, boxes_xyxy, strict=True):
        rows, columns = pixels_between(y0, y1, image_hw[0]), pixels_between(x0, x1, image_hw[1])
        weights_y, weights_x = bilinear(rows, y0, y1, one.shape[0]), bilinear(columns, x0, x1, one.shape[1])
        region = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        values = weights_y @ one @ weights_x.T
        canvas[region] = values > 0
        yield rle.encode(canvas), values
        canvas[region] = 0


def encode(mask: Mask, box_xyxy: Sequence[float], side: int) -> Tensor:
    """A mask [h, w] in the frame of a box in its pixels: "side side" logits, 1 where it covers a cell, -1 where not.

    A cell covered in part is in between, so `paste` puts the edge back where it was. Exact where cells are pixels.
    """
    x0, y0, x1, y1 = box_xyxy
    weights_y, weights_x = _coverage(mask.shape[0], y0, y1, side), _coverage(mask.shape[1], x0, x1, side)
    return torch.from_numpy(2 * (weights_y @ mask @ weights_x.T) - 1).float()


def pixels_between(low: float, high: float, size: int) -> range:
    """The pixels 0..size-1 whose centres lie in [low, high)."""
    first, last = (min(max(math.ceil(edge - 0.5), 0), size) for edge in (low, high))
    return range(first, max(first, last))


def bilinear(pixels: range, low: float, high: float, side: int) -> Weights:
    """Weights of `side` cells at each pixel centre, along one axis; the outer cells go on to the edge. "p side" """
    centres = np.arange(pixels.start, pixels.stop) + 0.5
    position = ((centres - low) / max(high - low, 1e-9) * side - 0.5).clip(0, side - 1)
    return (1 - np.abs(position[:, None] - np.arange(side))).clip(min=0)


def _coverage(size: int, low: float, high: float, side: int) -> Weights:
    """The part of each of `side` cells that each of `size` pixels covers, along one axis. "side size" """
    edges, pixels = np.linspace(low, high, side + 1), np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(min=0) / max((high - low) / side, 1e-9)
