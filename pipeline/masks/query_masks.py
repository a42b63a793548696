"""What the queries of a head say about one image, and their masks on the pixels of the original image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..data.panoptic import SegmentClass
from ..data.views import View
from .paste import bilinear, pixels_between

Task = Literal["semantic", "panoptic"]


@dataclass(frozen=True)
class QueryMasks:
    """Class and mask of each of the q queries, to be made into segments."""

    probs: Tensor
    """Of each class and, last, of no object. "q classes+1" """
    mask_logits: Tensor
    """Of the view, before sigmoid. "q h w" """
    stride: int
    """Pixels of the network input per cell of `mask_logits`, whose last cells may reach beyond it."""
    input_hw: tuple[int, int]
    """Size of the network input."""
    classes: tuple[SegmentClass, ...]
    task: Task
    object_threshold: float
    """Panoptic: a query with a lower probability is no segment."""
    overlap_threshold: float
    """Panoptic: of a mask, the share that no better one hides; with less it is no segment."""


@dataclass(frozen=True)
class Upsampling:
    """From the grid of the masks to the pixels of the original image that the view shows.

    As Mask2Former does it: bilinear to the padded network input, cut to the image, bilinear to its original size. Both
    are linear along each axis, so both are one matrix for rows and one for columns.
    """

    rows: Tensor
    """ "p h" """
    columns: Tensor
    """ "p w" """
    region: tuple[slice, slice]
    """The pixels that the view shows, in an image of `image_hw`; all of them in most views."""
    image_hw: tuple[int, int]

    @classmethod
    def of(cls, queries: QueryMasks, view: View) -> "Upsampling":
        """Of the masks of an image in a view."""
        x0, y0, x1, y1 = view.window
        (h, w), like = queries.mask_logits.shape[1:], queries.mask_logits
        rows, y = _axis(view.image_hw[0], y0, y1, queries.input_hw[0], queries.stride, h)
        columns, x = _axis(view.image_hw[1], x0, x1, queries.input_hw[1], queries.stride, w, mirrored=view.mirrored)
        return cls(rows.to(like.device), columns.to(like.device), (y, x), view.image_hw)

    def bands(self, height: int) -> Iterator[tuple[slice, Tensor]]:
        """So many rows at a time: which of the region's, and their part of `rows`."""
        for start in range(0, len(self.rows), height):
            yield slice(start, start + height), self.rows[start : start + height]

    def logits(self, mask_logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """Masks on the pixels of the region, or of some of its rows: "q h w" -> float32 "q p p" """
        return torch.matmul(self.rows if rows is None else rows, mask_logits.float()) @ self.columns.T


def _axis(
    size: int, low: float, high: float, input_size: int, stride: int, cells: int, *, mirrored: bool = False
) -> tuple[Tensor, slice]:
    """Along one axis, the weights of the cells "p cells" and the pixels, of an image of this size; [low, high] is the
    window of the view in it."""
    shown = pixels_between(low, high, size)
    to_input = bilinear(range(input_size), 0, cells * stride, cells)
    if mirrored:
        to_input = to_input[::-1]
    weights = bilinear(shown, low, high, input_size) @ to_input
    return torch.from_numpy(weights).float(), slice(shown.start, shown.stop)
