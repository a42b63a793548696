"""Every choice of the Mask2Former head, with its default; the defaults are those of its instance model (R50)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ...bounds import Bounds, Count, CountOrZero, Share, Weight, check_bounds


@dataclass(frozen=True)
class Mask2FormerConfig:
    """One head. `configs/heads/*.toml` hold the named ones."""

    task: Literal["instance", "semantic", "panoptic"] = "instance"
    """What it learns and tells: objects; a class for each pixel, in which everything of a class is one mask; or
    segments, things and stuff. The last two take features extracted with --panoptic, and the classes from there."""
    object_threshold: Share = 0.8
    """Panoptic: a query whose best class is less probable is no segment."""
    overlap_threshold: Share = 0.8
    """Panoptic: a query that wins less than this share of its own mask is no segment."""
    encoder_layer: CountOrZero = 0
    """Which encoder layer's maps it reads, from 1; 0: those that the detector's TOML chose. Others must be in the
    cache: `extra_encoder_layers` of the detector."""
    levels: CountOrZero = 0
    """How many encoder maps the layers take in turn, counted from the finest (Mask2Former: 3); 0: all there are."""
    start: Literal["learned", "detector"] = "learned"
    """What the queries are at first. `learned`: the same for every image. `detector`: its detections, whose embedding
    and label give the content and whose box gives the position; what they say of class and mask is added to the label
    and the filled box. Ours, and far quicker to learn."""
    queries: Count = 100
    """How many learned ones."""
    layers: Count = 9
    """Of the decoder; the first prediction comes before them."""
    hidden: Annotated[int, Bounds(4)] = 256
    """Width of the decoder and of the mask features."""
    heads: Count = 8
    """Attention heads of every attention."""
    feed_forward: Count = 2048
    """Width inside the feed-forward part of each layer."""
    mask_cells: Literal[1, 2, 4] = 1
    """Cells of a mask along each side of a cell of C1, whose stride is 4. More than one is for small pictures, on whose
    objects so coarse a mask cannot be right; ours, not the paper's."""
    detections: Count = 100
    """Most masks of an image: the best pairs of query and class."""

    class_weight: Weight = 2.0
    """Of the class term, in loss and matching; bce_weight and dice_weight of the training are those of the others."""
    no_object: Annotated[float, Bounds(0, 1, above=True)] = 0.1
    """Weight of the queries without object in the class term."""
    mask_points: Count = 12544
    """Points of a mask at which loss and matching look: 112 x 112."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.hidden % 4:
            raise ValueError(f"hidden is {self.hidden}, expected a multiple of 4: sines and cosines of x and y")
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} is not divided by heads = {self.heads}")
        if self.task != "instance" and self.start == "detector":
            raise ValueError(f"task={self.task} with start=detector: no detection asks for stuff; use start=learned")
