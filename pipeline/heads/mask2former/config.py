"""Every choice of the Mask2Former head, with its default; the defaults are those of its instance model (R50)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Mask2FormerConfig:
    """One head. `configs/heads/*.toml` hold the named ones."""

    task: Literal["instance", "semantic", "panoptic"] = "instance"
    """What it learns and tells: objects; a class for each pixel, in which everything of a class is one mask; or
    segments, things and stuff. The last two take features extracted with --panoptic, and the classes from there."""
    object_threshold: float = 0.8
    """Panoptic: a query whose best class is less probable is no segment."""
    overlap_threshold: float = 0.8
    """Panoptic: a query that wins less than this share of its own mask is no segment."""
    encoder_layer: int = 0
    """Which encoder layer's maps it reads, from 1; 0: those that the detector's TOML chose. Others must be in the
    cache: `extra_encoder_layers` of the detector."""
    levels: int = 0
    """How many encoder maps the layers take in turn, counted from the finest (Mask2Former: 3); 0: all there are."""
    start: Literal["learned", "detector"] = "learned"
    """What the queries are at first. `learned`: the same for every image. `detector`: its detections, whose embedding
    and label give the content and whose box gives the position; what they say of class and mask is added to the label
    and the filled box. Ours, and far quicker to learn."""
    queries: int = 100
    """How many learned ones."""
    layers: int = 9
    """Of the decoder; the first prediction comes before them."""
    hidden: int = 256
    """Width of the decoder and of the mask features."""
    heads: int = 8
    """Attention heads of every attention."""
    feed_forward: int = 2048
    """Width inside the feed-forward part of each layer."""
    mask_cells: Literal[1, 2, 4] = 1
    """Cells of a mask along each side of a cell of C1, whose stride is 4. More than one is for small pictures, on whose
    objects so coarse a mask cannot be right; ours, not the paper's."""
    detections: int = 100
    """Most masks of an image: the best pairs of query and class."""

    class_weight: float = 2.0
    """Of the class term, in loss and matching; bce_weight and dice_weight of the training are those of the others."""
    no_object: float = 0.1
    """Weight of the queries without object in the class term."""
    mask_points: int = 12544
    """Points of a mask at which loss and matching look: 112 x 112."""

    def __post_init__(self) -> None:
        for name in ("queries", "layers", "heads", "feed_forward", "detections", "mask_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("encoder_layer", "levels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more, or 0 for the default")
        if self.hidden < 4 or self.hidden % 4:
            raise ValueError(f"hidden is {self.hidden}, expected a multiple of 4: sines and cosines of x and y")
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} is not divided by heads = {self.heads}")
        for name in ("object_threshold", "overlap_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        if self.task != "instance" and self.start == "detector":
            raise ValueError(f"task={self.task} with start=detector: no detection asks for stuff; use start=learned")
        if not 0 < self.no_object <= 1:
            raise ValueError(f"no_object is {self.no_object}, expected more than 0 and at most 1")
