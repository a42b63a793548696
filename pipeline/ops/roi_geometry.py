"""`Geometry`: everything RoIAlign must know beside its tensors. Its plain integers travel through `torch.library`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Grid = tuple[tuple[int, int], ...]
"""(h, w) of each image."""


@dataclass(frozen=True)
class Geometry:
    """Which cells a box reads."""

    counts: tuple[int, ...]
    """Boxes of each image."""
    grids: tuple[Grid, ...]
    """Of each level."""
    strides: tuple[float, ...]
    """Input pixels per cell of each level."""
    size: int
    """r, bins along each side of the RoI grid."""
    aligned: bool
    """Cell i has its centre at i + 0.5 (True) or at i (False: and no box is smaller than one cell)."""
    sampling_ratio: int
    """Samples per bin and axis; 0 or less: as many as a bin has cells, rounded up."""
    composite: bool
    """Coarser levels are upsampled to the grid of the first, there sampled; else each is sampled on its own grid."""

    @property
    def images(self) -> int:
        """b."""
        return len(self.counts)

    @property
    def boxes(self) -> int:
        """m, boxes of all images."""
        return sum(self.counts)

    def upsampled(self, level: int) -> bool:
        """Whether a level is read through the grid of the first."""
        return self.composite and level > 0

    def flat_grids(self) -> list[int]:
        """h and w of each level and image, as a custom operator can take them."""
        return [side for grid in self.grids for hw in grid for side in hw]


def grids_of(flat: Sequence[int], levels: int) -> tuple[Grid, ...]:
    """The inverse of `Geometry.flat_grids`."""
    pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
    b = len(pairs) // levels
    return tuple(pairs[i * b : (i + 1) * b] for i in range(levels))


def rows_read(top: float, bottom: float, stride: float, cells: int) -> tuple[int, int]:
    """Rows [y0, y1) that hold every cell RoIAlign reads of a map for a box from `top` to `bottom`, in input pixels.

    cells: rows of the map. Samples lie within the box and read the two rows around them; beyond the map they read its
    first or last. One row more on each side is for rounding, and for boxes that are not `aligned`.
    """
    first, last = math.floor(top / stride - 0.5) - 1, math.floor(bottom / stride) + 2
    first, last = (min(max(row, 0), cells - 1) for row in (first, last))
    return first, last + 1
