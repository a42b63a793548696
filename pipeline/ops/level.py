"""`Level`: one feature map of a pyramid as RoIAlign reads it, whatever its layout and number format."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PipelineError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Level:
    """A map of b images. Raises PipelineError where its fields contradict each other."""

    values: Tensor
    """"b c h w" (read without a copy where it is channels-last in memory), or tokens "b s c", row-major from the first
    token of each image on. Float, or uint8 with `scale` and `offset`. With c = 0 a level lends its grid alone."""
    stride: float
    """Input pixels per cell."""
    sizes: Sequence[tuple[int, int]] | None = None
    """(h, w) of each image: what lies beyond is padding that no box sees. None: the whole map. Tokens need it."""
    scale: Tensor | None = None
    """A stored value q means q * scale + offset; per image and channel, float32. "b c" """
    offset: Tensor | None = None

    def __post_init__(self) -> None:
        kind, b, c = self.values.dtype, self.images, self.channels
        if kind != torch.uint8 and kind not in FLOATS:
            raise PipelineError(f"RoIAlign cannot read a map of {kind}", "float16, bfloat16, float32, float64 or uint8")
        quantised = [part for part in (self.scale, self.offset) if part is not None]
        if len(quantised) != (2 if kind == torch.uint8 else 0):
            raise PipelineError(
                f"a map of {kind} with {len(quantised)} of scale and offset", "uint8 has both, floats none"
            )
        if any(part.shape != (b, c) for part in quantised):
            raise PipelineError(f"scale and offset of {b} images and {c} channels must be {(b, c)}")
        if self.values.dim() == 3 and self.sizes is None:
            raise PipelineError("tokens without the sizes of their images", "give sizes=[(h, w), ...], one per image")
        if self.sizes is not None and len(self.sizes) != b:
            raise PipelineError(f"{len(self.sizes)} sizes for a map of {b} images")
        cells = self.values.shape[1] if self.values.dim() == 3 else 0
        for h, w in self.grid:
            inside = h * w <= cells if cells else h <= self.values.shape[2] and w <= self.values.shape[3]
            if h < 1 or w < 1 or not inside:
                raise PipelineError(f"an image of {h} x {w} cells in values of shape {tuple(self.values.shape)}")

    @property
    def images(self) -> int:
        """b."""
        return self.values.shape[0]

    @property
    def channels(self) -> int:
        """c."""
        return self.values.shape[2 if self.values.dim() == 3 else 1]

    @property
    def grid(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of each image."""
        if self.sizes is None:
            return ((self.values.shape[2], self.values.shape[3]),) * self.images
        return tuple((int(h), int(w)) for h, w in self.sizes)

    @property
    def cells(self) -> Tensor:
        """The values channels last, a view: "b h w c", and tokens "b 1 s c", their rows one after the other."""
        return self.values[:, None] if self.values.dim() == 3 else self.values.permute(0, 2, 3, 1)

    def maps(self) -> list[Tensor]:
        """Each image's own map in floats, without padding: "1 c h w"; one "b c h w" where all have one size."""
        grid = self.grid
        batches = [slice(None)] if len(set(grid)) == 1 else [slice(i, i + 1) for i in range(self.images)]
        return [self._map(images, *grid[images.start or 0]) for images in batches]

    def _map(self, images: slice, h: int, w: int) -> Tensor:
        values = image_cells(self.cells[images], h, w).permute(0, 3, 1, 2)
        if self.scale is None or self.offset is None:
            return values
        return values * self.scale[images, :, None, None] + self.offset[images, :, None, None]


def image_cells(cells: Tensor, h: int, w: int) -> Tensor:
    """The cells of images of h x w, without padding: "b h w c" out of `Level.cells`, a view."""
    if cells.shape[1] == 1:
        return cells[:, 0, : h * w].unflatten(1, (h, w))
    return cells[:, :h, :w]


def output_of(cells: Sequence[Tensor]) -> tuple[int, torch.dtype]:
    """Channels and format of RoIAlign of such `Level.cells`: the first float map's, float32 where all are uint8.

    A map without channels lends its grid and does not count.
    """
    counted = [level for level in cells if level.shape[3]]
    kinds = (level.dtype for level in counted if level.dtype in FLOATS)
    return max((level.shape[3] for level in counted), default=0), next(kinds, torch.float32)
