"""`Geometry`: everything RoIAlign must know beside its tensors. Its plain integers travel through `torch.library`."""

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
