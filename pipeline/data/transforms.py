"""What the detector sees: resize, views, normalisation; and every change of frame of boxes and masks, here only.

Frames: *view* boxes are cxcywh in 0-1 of the view (what detectors give and caches hold); *original* boxes are pixels of
the image file. Views: `orig` is the image, `hflip` its mirror image left to right.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featcache import GroundTruth

from ..errors import UsageError, nearest
from ..masks import rle

VIEWS = ("orig", "hflip")


@dataclass(frozen=True)
class Transform:
    """Image -> network input, bilinear with PIL's antialiasing (a plain tensor resize gives other features)."""

    resize: Literal["square", "shortest"]
    """`square`: to size x size, whatever the aspect. `shortest`: short side to `size`, long side at most `max_size`."""
    size: int
    max_size: int = 0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
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

    def __call__(self, image: Image.Image, view: str = "orig") -> Tensor:
        """Float "3 h w", RGB, normalised."""
        height, width = self.network_hw((image.height, image.width))
        image = view_image(image.convert("RGB"), view).resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous()

    def to_json(self) -> dict[str, object]:
        """For the identity of a cache."""
        return dataclasses.asdict(self)


def check_view(view: str) -> str:
    """`view` itself if it is known."""
    if view not in VIEWS:
        raise UsageError(
            f"unknown view '{view}'", f"did you mean {nearest(view, VIEWS, cutoff=0)}? known: {', '.join(VIEWS)}"
        )
    return view


def view_image(image: Image.Image, view: str) -> Image.Image:
    """The image as this view shows it."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if check_view(view) == "hflip" else image


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


def flip_boxes(boxes_cxcywh: Tensor, view: str) -> Tensor:
    """Boxes in 0-1 from the original to `view`, or back: each view is its own inverse. "... 4" """
    if check_view(view) == "orig":
        return boxes_cxcywh
    return torch.cat([1 - boxes_cxcywh[..., :1], boxes_cxcywh[..., 1:]], dim=-1)


def view_to_original(boxes_cxcywh: Tensor, image_hw: tuple[int, int], view: str = "orig") -> Tensor:
    """Boxes of a view (cxcywh, 0-1) -> xyxy in pixels of the original image, not clipped. float64 "... 4" """
    height, width = image_hw
    boxes = cxcywh_to_xyxy(flip_boxes(boxes_cxcywh.double(), view))
    return boxes * boxes.new_tensor([width, height, width, height])


def original_to_view(boxes_xyxy: Tensor, image_hw: tuple[int, int], view: str = "orig") -> Tensor:
    """xyxy in pixels of the original image -> boxes of a view (cxcywh, 0-1). float64 "... 4" """
    height, width = image_hw
    boxes = boxes_xyxy.double()
    return flip_boxes(xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height])), view)


def view_ground_truth(truth: GroundTruth, image_hw: tuple[int, int], view: str) -> GroundTruth:
    """Ground truth of the original image -> the same as this view shows it (still pixels, still h x w)."""
    if check_view(view) == "orig":
        return truth
    boxes = truth.boxes_xywh.copy()
    boxes[:, 0] = image_hw[1] - boxes[:, 0] - boxes[:, 2]
    rles = [rle.encode(rle.decode(counts, image_hw)[:, ::-1]) for counts in truth.rles]
    return dataclasses.replace(truth, boxes_xywh=boxes, rles=rles)
