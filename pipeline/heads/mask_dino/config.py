"""Every choice of the Mask DINO head, with its default; the defaults are those of its instance model (R50)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ...bounds import Bounds, Count, CountOrZero, Share, Weight, check_bounds


@dataclass(frozen=True)
class MaskDinoConfig:
    """One head. `interaction_layers` and `guiding_tokens` make DI-MaskDINO of Mask DINO: `configs/heads/*.toml`."""

    encoder_layer: CountOrZero = 0
    """Which encoder layer's maps it reads, from 1; 0: those that the detector's TOML chose. Others must be in the
    cache: `extra_encoder_layers` of the detector."""
    levels: CountOrZero = 0
    """How many encoder maps it reads, counted from the finest; 0: all there are."""
    start: Literal["tokens", "detector"] = "tokens"
    """What the queries are at first. `tokens`: the best tokens of the maps, whose masks tell the first boxes.
    `detector`: its detections, content from embedding and label, with their boxes; what they say of class and mask is
    added to the label and the filled box. Ours, and far quicker to learn."""
    queries: Count = 300
    """How many tokens of the maps become queries: those with the best class."""
    layers: Count = 9
    """Of the decoder."""
    hidden: Annotated[int, Bounds(4)] = 256
    """Width of the decoder and of the mask features."""
    heads: Count = 8
    """Of every attention."""
    sampling_points: Count = 4
    """Where each head of the deformable attention looks in each level."""
    feed_forward: Count = 2048
    """Width between the two layers of every feed-forward."""
    mask_cells: Literal[1, 2, 4] = 1
    """Cells of a mask along each side of a cell of C1, whose stride is 4. More than one is for small pictures, on whose
    objects so coarse a mask cannot be right; ours, not the paper's."""
    detections: Count = 100
    """Most masks of an image: the best pairs of query and class."""

    interaction_layers: CountOrZero = 0
    """De-Imbalance (DI-MaskDINO: 2): tokens attend to each other so often before the best `queries` of them are chosen
    a second time; 0: they are chosen once."""
    first_selected: Count = 600
    """How many tokens interact, where there are such layers."""
    residual: bool = False
    """The cross-attention from the twice selected tokens back to all of them (DI-MaskDINO's eq. 4). It is absent from
    the released code, so its positions and norm are our choice."""
    guiding_tokens: CountOrZero = 0
    """Balance-Aware Tokens Optimization (DI-MaskDINO: 50): after the first layer the tokens and the mask features
    attend to so many of the best queries; 0: they stay as they are."""

    denoising: CountOrZero = 100
    """About how many denoising queries an image gets while it trains."""
    noise: Share = 0.4
    """Of the labels and boxes of these, see `denoising_queries`."""
    class_weight: Weight = 4.0
    """Of the class term, in loss and matching; bce_weight and dice_weight of the training are those of the masks."""
    l1_weight: Weight = 5.0
    """Of the L1 distance of boxes."""
    giou_weight: Weight = 2.0
    """Of their generalised IoU."""
    mask_points: Count = 12544
    """Points of a mask at which loss and matching look: 112 x 112."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.hidden % 4:
            raise ValueError(f"hidden is {self.hidden}, expected a multiple of 4: sines and cosines of x and y")
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} is not divided by heads = {self.heads}")
        if self.interaction_layers and self.first_selected < self.queries:
            raise ValueError(f"first_selected = {self.first_selected} leaves fewer than queries = {self.queries}")
        if self.residual and not self.interaction_layers:
            raise ValueError("residual = true goes with interaction_layers of 1 or more")
        if self.start == "detector" and self.denoising:
            raise ValueError("start=detector goes with denoising=0: its queries have an object from the first step on")
        if self.start == "tokens" and self.guiding_tokens > self.queries:
            raise ValueError(f"guiding_tokens = {self.guiding_tokens} is more than queries = {self.queries}")
        if self.guiding_tokens and self.layers < 2:
            raise ValueError("guiding_tokens go with layers of 2 or more: what they change is read after the first")
