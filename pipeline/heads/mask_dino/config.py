"""Every choice of the Mask DINO head, with its default; the defaults are those of its instance model (R50)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MaskDinoConfig:
    """One head. `interaction_layers` and `guiding_tokens` make DI-MaskDINO of Mask DINO: `configs/heads/*.toml`."""

    encoder_layer: int = 0
    """Which encoder layer's maps it reads, from 1; 0: those that the detector's TOML chose. Others must be in the
    cache: `extra_encoder_layers` of the detector."""
    levels: int = 0
    """How many encoder maps it reads, counted from the finest; 0: all there are."""
    start: Literal["tokens", "detector"] = "tokens"
    """What the queries are at first. `tokens`: the best tokens of the maps, whose masks tell the first boxes.
    `detector`: its detections, content from embedding and label, with their boxes; what they say of class and mask is
    added to the label and the filled box. Ours, and far quicker to learn."""
    queries: int = 300
    """How many tokens of the maps become queries: those with the best class."""
    layers: int = 9
    """Of the decoder."""
    hidden: int = 256
    """Width of the decoder and of the mask features."""
    heads: int = 8
    """Of every attention."""
    sampling_points: int = 4
    """Where each head of the deformable attention looks in each level."""
    feed_forward: int = 2048
    """Width between the two layers of every feed-forward."""
    mask_cells: Literal[1, 2, 4] = 1
    """Cells of a mask along each side of a cell of C1, whose stride is 4. More than one is for small pictures, on whose
    objects so coarse a mask cannot be right; ours, not the paper's."""
    detections: int = 100
    """Most masks of an image: the best pairs of query and class."""

    interaction_layers: int = 0
    """De-Imbalance (DI-MaskDINO: 2): tokens attend to each other so often before the best `queries` of them are chosen
    a second time; 0: they are chosen once."""
    first_selected: int = 600
    """How many tokens interact, where there are such layers."""
    residual: bool = False
    """The cross-attention from the twice selected tokens back to all of them (DI-MaskDINO's eq. 4). It is absent from
    the released code, so its positions and norm are our choice."""
    guiding_tokens: int = 0
    """Balance-Aware Tokens Optimization (DI-MaskDINO: 50): after the first layer the tokens and the mask features
    attend to so many of the best queries; 0: they stay as they are."""

    denoising: int = 100
    """About how many denoising queries an image gets while it trains."""
    noise: float = 0.4
    """Of the labels and boxes of these, see `denoising_queries`."""
    class_weight: float = 4.0
    """Of the class term, in loss and matching; bce_weight and dice_weight of the training are those of the masks."""
    l1_weight: float = 5.0
    """Of the L1 distance of boxes."""
    giou_weight: float = 2.0
    """Of their generalised IoU."""
    mask_points: int = 12544
    """Points of a mask at which loss and matching look: 112 x 112."""

    def __post_init__(self) -> None:
        for name in ("queries", "layers", "heads", "sampling_points", "feed_forward", "detections", "mask_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("encoder_layer", "levels", "interaction_layers", "guiding_tokens", "denoising"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more, or 0 for none or the default")
        if self.hidden < 4 or self.hidden % 4:
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
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise is {self.noise}, expected 0 to 1")
