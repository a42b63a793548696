"""What RoIAlign's tests draw: pyramids of a few cells, boxes in, across and outside the image, options."""

from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

from pipeline.ops.level import Level

CORNERS = st.integers(-64, 320).map(lambda eighths: eighths / 8)  # cells of stride 4: -2 to 10; whole cells often


@dataclass(frozen=True)
class Case:
    """Arguments of `roi_align`."""

    levels: list[Level]
    boxes: list[Tensor]
    size: int
    options: dict[str, Any]

    def with_values(self, values: list[Tensor]) -> "Case":
        """The same boxes on other maps of the same shape."""
        return replace(self, levels=[replace(old, values=new) for old, new in zip(self.levels, values, strict=True)])

    def to(self, device: torch.device) -> "Case":
        """The same on another device."""
        levels = [
            replace(
                level,
                values=level.values.to(device),
                scale=None if level.scale is None else level.scale.to(device),
                offset=None if level.offset is None else level.offset.to(device),
            )
            for level in self.levels
        ]
        return replace(self, levels=levels, boxes=[rows.to(device) for rows in self.boxes])


@st.composite
def boxes_of(draw: st.DrawFn, *, inside_out: bool) -> Tensor:
    """Zero to four boxes, some of them flat, tiny or outside the map, some inside out where that is wanted."""
    found: list[list[float]] = []
    for _ in range(draw(st.integers(0, 4))):
        x, y = draw(CORNERS), draw(CORNERS)
        w, h = (draw(st.one_of(CORNERS, st.sampled_from([0.0, 0.3, 7.7, 100.0]))) for _ in range(2))
        found.append([x, y, x + (w if inside_out else abs(w)), y + (h if inside_out else abs(h))])
    return torch.tensor(found).reshape(-1, 4)


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    channels: tuple[int, ...] = (1, 2, 3),
    dtype: torch.dtype = torch.float32,
    levels: tuple[int, ...] = (1, 2, 3),
    ratios: tuple[int, ...] = (-1, 0, 1, 2, 3, 5),
    upsamples: tuple[str, ...] = ("bilinear", "direct"),
    inside_out: bool = True,
    b: int = 2,
) -> Case:
    """A pyramid of `b` images and boxes on them. torchvision cannot count the samples of boxes that are inside out."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    c, h, w = draw(st.sampled_from(channels)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    pyramid: list[Level] = []
    for level in range(draw(st.sampled_from(levels))):
        maps = torch.randn(b, c, h, w, generator=generator, dtype=torch.float64)
        if draw(st.booleans()):
            maps = maps.contiguous(memory_format=torch.channels_last)
        pyramid.append(Level(maps.to(dtype), 4 * 2**level))
        h, w = (draw(st.integers((side + 1) // 2, side)) for side in (h, w))  # halved, or anything up to the same
    options = {
        "aligned": draw(st.booleans()),
        "sampling_ratio": draw(st.sampled_from(ratios)),
        "upsample": draw(st.sampled_from(upsamples)),
    }
    return Case(pyramid, [draw(boxes_of(inside_out=inside_out)) for _ in range(b)], draw(st.integers(1, 5)), options)
