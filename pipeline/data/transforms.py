"""What the detector sees: resize, views, normalisation; and every change of frame of boxes and masks, here only.

Frames: *view* boxes are cxcywh in 0-1 of the view's canvas (what detectors give and caches hold); *original* boxes are
pixels of the image file. `views.py` says which window of the image a view shows.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .views import View, as_view


@dataclass(frozen=True)
class Transform:
    """Image -> network input, bilinear with PIL's antialiasing (a plain tensor resize gives other features)."""

    resize: Literal["square", "shortest"]
    """`square`: to size x size, whatever the aspect. `shortest`: short side to `size`, long side at most `max_size`."""
    size: int
    """Pixels, see `resize`."""
    max_size: int = 0
    """Of the long side, with `shortest` only."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of RGB values in 0-1."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of RGB values in 0-1."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected at least 1")
        if (self.resize == "shortest") != (self.max_size > 0):
            raise ValueError("max_size goes with resize = 'shortest', and only with it")
        if self.resize == "shortest" and self.max_size < self.size:
            raise ValueError(f"max_size {self.max_size} is below size {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"std is {list(self.std)}, expected values above 0")

    def network_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the network input for an image of this height and width."""
        if self.resize == "square":
            return self.size, self.size
        short, long = sorted(image_hw)
        side = self.size
        if long / short * side > self.max_size:
            side = round(self.max_size * short / long)
        if short == side:
            return image_hw
        other = int(side * long / short)  # the DETR code truncates here, and its box AP depends on it
        return (side, other) if image_hw[0] <= image_hw[1] else (other, side)

    def largest_hw(self) -> tuple[int, int]:
        """The network input with the most pixels that any image can give (landscape)."""
        return (self.size, self.size) if self.resize == "square" else (self.size, self.max_size)

    def __call__(self, image: Image.Image, view: View | str = "orig") -> Tensor:
        """Float "3 h w", RGB, normalised; zero where the view reaches beyond the image."""
        image_hw = (image.height, image.width)
        (height, width), view = self.network_hw(image_hw), as_view(view, image_hw)
        if not view.whole:
            return self._windowed(image.convert("RGB"), view, (height, width))
        image = image.convert("RGB")
        if view.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._normalised(image.resize((width, height), Image.Resampling.BILINEAR))

    def _windowed(self, image: Image.Image, view: View, canvas_hw: tuple[int, int]) -> Tensor:
        """A canvas that shows the image where the centres of its pixels lie in it."""
        x0, y0, x1, y1 = view.window
        columns, left, right = _shown(x0, x1, image.width, canvas_hw[1])
        rows, top, bottom = _shown(y0, y1, image.height, canvas_hw[0])
        canvas = torch.zeros(3, *canvas_hw)
        if len(columns) and len(rows):
            image, (dx, dy) = _extended(image, (left, top, right, bottom))
            box = (left + dx, top + dy, right + dx, bottom + dy)
            shown = image.resize((len(columns), len(rows)), Image.Resampling.BILINEAR, box=box)
            canvas[:, rows.start : rows.stop, columns.start : columns.stop] = self._normalised(shown)
        return canvas.flip(-1) if view.mirrored else canvas

    def _normalised(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous()

    def to_json(self) -> dict[str, object]:
        """For the identity of a cache."""
        return dataclasses.asdict(self)


def _shown(low: float, high: float, size: int, cells: int) -> tuple[range, float, float]:
    """Along one axis, `cells` of a canvas over [low, high] of an image of this size: the cells with their centre in it.

    With them, where the first begins and the last ends in the image, which may be up to half a cell beyond its edge.
    """
    pitch = (high - low) / cells
    first, last = (min(max(math.ceil((edge - low) / pitch - 0.5), 0), cells) for edge in (0, size))
    return range(first, max(first, last)), low + first * pitch, low + last * pitch


def _extended(image: Image.Image, box: tuple[float, float, float, float]) -> tuple[Image.Image, tuple[int, int]]:
    """The image with its outermost pixels repeated as far as the box reaches, and how much of that is left and top."""
    left, top = (max(0, math.ceil(-edge)) for edge in box[:2])
    right, bottom = (max(0, math.ceil(edge - size)) for edge, size in zip(box[2:], image.size, strict=True))
    if left or top or right or bottom:
        image = Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
    return image, (left, top)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size -> corners, in whatever unit. "... 4" """
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners -> centre and size, in whatever unit. "... 4" """
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Corners -> COCO's corner and size. "... 4" """
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """COCO's corner and size -> corners. "... 4" """
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def flip_boxes(boxes_cxcywh: Tensor) -> Tensor:
    """Boxes in 0-1 in the mirror, left to right. "... 4" """
    return torch.cat([1 - boxes_cxcywh[..., :1], boxes_cxcywh[..., 1:]], dim=-1)


def view_to_original(boxes_cxcywh: Tensor, image_hw: tuple[int, int], view: View | str = "orig") -> Tensor:
    """Boxes of a view (cxcywh, 0-1) -> xyxy in pixels of the original image, not clipped. float64 "... 4" """
    view, boxes = as_view(view, image_hw), boxes_cxcywh.double()
    offset, size = _offset_and_size(view, boxes)
    return cxcywh_to_xyxy(flip_boxes(boxes) if view.mirrored else boxes) * size + offset


def original_to_view(boxes_xyxy: Tensor, image_hw: tuple[int, int], view: View | str = "orig") -> Tensor:
    """xyxy in pixels of the original image -> boxes of a view (cxcywh, 0-1), not clipped. float64 "... 4" """
    view, boxes = as_view(view, image_hw), boxes_xyxy.double()
    offset, size = _offset_and_size(view, boxes)
    boxes = xyxy_to_cxcywh((boxes - offset) / size)
    return flip_boxes(boxes) if view.mirrored else boxes


def _offset_and_size(view: View, like: Tensor) -> tuple[Tensor, Tensor]:
    """Top left corner of the window and its width and height, each twice: "4" """
    x0, y0, x1, y1 = view.window
    return like.new_tensor([x0, y0, x0, y0]), like.new_tensor([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
