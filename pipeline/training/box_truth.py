"""What the object of each box says at points of the box: of all boxes at once, on the device where it is asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..data.views import View
from .points import sample_joined

POINTS_AT_ONCE = 1 << 14
"""On a CPU, so that what is worked out between stays in its cache."""


@dataclass(frozen=True)
class BoxTruth:
    """The objects of m boxes, joined to one row of pixels."""

    pixels: Tensor
    """Of every object once, uint8 "s"."""
    start: Tensor
    """Where in them the object of each box begins, int64 "m 1"."""
    h: Tensor
    """Height of its image, int64 "m 1"."""
    w: Tensor
    """Width of its image, int64 "m 1"."""
    frames: Tensor
    """Each box in pixels of the original image, xyxy. "m 4" """
    mirrored: Tensor | None
    """Whether the view of each box is, bool "m 1"; None where none is."""
    windows: Tensor | None
    """What of the image each box may see, xyxy in its pixels "m 4", endless in a whole view; None where all are."""

    @classmethod
    def of(cls, masks: Sequence[Tensor], frames: Tensor, views: Sequence[View], device: torch.device) -> "BoxTruth":
        """masks: uint8 "h w" of each box, where several have one object the very same tensor."""
        objects = {id(mask): mask for mask in masks}
        starts = dict(zip(objects, accumulate((mask.numel() for mask in objects.values()), initial=0), strict=False))
        sizes = torch.tensor([(starts[id(mask)], *mask.shape) for mask in masks]).to(device)
        edges = [(-math.inf, -math.inf, math.inf, math.inf) if view.whole else view.window for view in views]
        return cls(
            pixels=torch.cat([mask.flatten() for mask in objects.values()]).to(device),
            start=sizes[:, :1],
            h=sizes[:, 1:2],
            w=sizes[:, 2:],
            frames=frames.to(device),
            mirrored=torch.tensor([[view.mirrored] for view in views]).to(device)
            if any(view.mirrored for view in views)
            else None,
            windows=None if all(view.whole for view in views) else frames.new_tensor(edges).to(device),
        )

    def sample(self, points: Tensor) -> Tensor:
        """Share of the object at points in 0-1 of each box, 0 where the view does not show it. "m p 2" -> "m p" """
        m, p, _ = points.shape
        boxes = max(1, POINTS_AT_ONCE // max(p, 1)) if points.device.type == "cpu" else m
        return torch.cat([self._sample(points, slice(first, first + boxes)) for first in range(0, m, boxes)])

    def _sample(self, points: Tensor, rows: slice) -> Tensor:
        x, y = points[rows].unbind(-1)
        if self.mirrored is not None:  # the frame is the original image's, the points are the mirror's
            x = torch.where(self.mirrored[rows], 1 - x, x)
        low, high = self.frames[rows, None, :2], self.frames[rows, None, 2:]
        positions = low + torch.stack([x, y], dim=-1) * (high - low)
        share = sample_joined(self.pixels, self.start[rows], self.h[rows], self.w[rows], positions)
        if self.windows is None:
            return share
        first, last = self.windows[rows, None, :2], self.windows[rows, None, 2:]
        return share * ((positions >= first) & (positions <= last)).all(dim=2)
