"""How a head is trained; the defaults are the paper's where it states them (section 3.1), else the field's."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from ..bounds import Bounds, Count, CountOrZero, Share, Weight, check_bounds
from ..detectors.base import Part


@dataclass(frozen=True)
class TrainConfig:
    """One training. Set in the `[train]` table of a head's TOML, or by `key=value` on the command line."""

    steps: Count = 88_500
    """88,500 of 8 images: six passes over COCO's training images."""
    batch_size: Count = 8
    """Images of a step."""
    seed: Annotated[int, Bounds(0, 2**63 - 1)] = 0
    """Of the first weights, dropout, boxes and points; of the order of the images too, unless `order_seed` is given."""
    order_seed: Annotated[int, Bounds(-1, 2**63 - 1)] = -1
    """Of the order of the images; -1: `seed`. With one order, the seeds of an ablation share a pass."""
    views: tuple[str, ...] = ()
    """Views of the cache to learn from, each once; empty: all it holds."""
    holdout: CountOrZero = 0
    """Leave out every n-th image, for choosing hyper-parameters (`evaluate --holdout`); 0 uses all."""

    lr: Annotated[float, Bounds(0, above=True)] = 1.5e-4
    """Learning rate of AdamW."""
    betas: Annotated[tuple[float, float], Bounds(0, 1, below=True)] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: Annotated[float, Bounds(0)] = 5e-5
    """Of AdamW."""
    decay_norms: bool = True
    """Decay biases and norms too. AdamW over all parameters, as the paper says it."""
    schedule: Literal["step", "cosine"] = "step"
    """`step`: times `gamma` at each of the `milestones`. `cosine`: down to zero."""
    milestones: Annotated[tuple[float, ...], Bounds(0, 1, above=True, below=True)] = (0.9, 0.95)
    """Shares of the steps after which the learning rate drops, for `schedule = "step"`; the paper states none."""
    gamma: Annotated[float, Bounds(0, 1, above=True)] = 0.1
    """What is left of it after each drop."""
    warmup: CountOrZero = 0
    """Steps of linear warm-up."""
    clip: Annotated[float, Bounds(0)] = 0.1
    """Largest gradient norm, 0 for none (Deformable DETR: 0.1)."""
    ema: Annotated[float, Bounds(0, 1, below=True)] = 0.0
    """Decay of the averaged weights, which then are the result; 0 for none."""
    amp: Literal["off", "bf16"] = "off"
    """Let the head compute in bfloat16 (autocast); weights and losses stay float32."""
    micro_batch: CountOrZero = 0
    """Images that pass the head at once, 0 for the whole batch: a step needs the memory of so many. The loss is the
    same but for the points, which are drawn for each part by itself; with heads that tell the objects themselves each
    part counts its own objects too."""

    match: Literal["hungarian", "overlap"] = "hungarian"
    """`hungarian`: one detection for each object. `overlap`: every detection with a box IoU of `match_iou` or more."""
    match_iou: Annotated[float, Bounds(0, 1, above=True)] = 0.5
    """Least box IoU with the object, for `match = "overlap"`."""
    cost_class: Weight = 2.0
    """Of the focal cost of the class in `match = "hungarian"`; this and the next two are Deformable DETR's."""
    cost_bbox: Weight = 5.0
    """Of the L1 distance of boxes in it."""
    cost_giou: Weight = 2.0
    """Of their generalised IoU in it."""
    roi_boxes: Literal["detected", "truth"] = "detected"
    """The box in which a matched detection learns the mask: `detected`, its own, as in prediction; `truth`, that of
    the object."""
    rois_per_image: Count = 100
    """Most boxes of one image in a step."""
    jitter: Annotated[float, Bounds(0, 0.5, below=True)] = 0.0
    """Move each edge of a box by up to this share of its side."""

    loss: Literal["points", "full"] = "points"
    """At sampled points, or on every point of the grid of `loss_grid`."""
    loss_grid: Count = 2
    """Points along a side of the grid on which the loss is taken, over the cells along a side of the RoI grid."""
    points: Annotated[float, Bounds(0, 1, above=True)] = 0.25
    """Sampled points over the points of that grid (the paper: 75 % fewer points)."""
    oversample: Annotated[float, Bounds(1)] = 3.0
    """Candidates drawn for each sampled point (PointRend's k)."""
    importance: Share = 0.75
    """Share of the points that are the least certain candidates; the rest are drawn anywhere (PointRend's beta)."""
    bce_weight: Weight = 5.0
    """Of the binary cross-entropy of the masks."""
    dice_weight: Weight = 5.0
    """Of their dice loss."""
    scoring_weight: Weight = 1.0
    """Of the predicted IoU, where the head has `mask_scoring`."""
    scoring_loss: Literal["l2", "l1"] = "l2"
    """How far the predicted IoU is from that of the mask: squared, or absolute."""
    scoring_target: Literal["object", "box"] = "object"
    """The IoU with all of the object, or with the part of it that lies in the box."""
    scoring_class: Literal["truth", "detected"] = "truth"
    """Of which class the IoU is learnt: the object's, or the detection's, whose IoU a prediction takes."""

    finetune: Part = "none"
    """What of the detector learns too (Table 11), which needs the live detector. `transformer`: encoder, decoder, heads
    and input projections. `all`: its backbone too, but no batch norm."""
    detector_lr_ratio: Annotated[float, Bounds(0)] = 0.1
    """Learning rate of the detector over that of the head (Table 11)."""
    detection_weight: Weight = 0.0
    """Of the detector's own loss (`detection.py`) beside that of the masks. The paper does not say what trains its
    detector. At 0 the masks alone do: boxes and scores then follow changed features with nothing to hold them. At 1
    the detector goes on learning boxes and classes by the loss it was trained with, its one-to-one branch only."""

    log_every: Count = 20
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints."""
    evaluate_every: CountOrZero = 0
    """Evaluate on --val-cache after every so many steps and after the last, and keep the best weights; 0: only what
    the training ends with. `ablate` leaves it out."""

    def __post_init__(self) -> None:
        check_bounds(self)
        object.__setattr__(self, "views", tuple(dict.fromkeys(self.views)))  # a view named twice is looked at once
        if self.evaluate_every and self.finetune != "none":
            raise ValueError("evaluate_every goes with finetune = 'none': a cache is of the detector as it was")
        if self.holdout == 1:
            raise ValueError("holdout is 1, expected 0 (none) or 2 and more")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} leaves nothing of {self.steps} steps; warmup=0 has none")
        if self.micro_batch and self.finetune != "none":
            raise ValueError("micro_batch goes with finetune = 'none': a detector that learns keeps the batch whole")
        if self.finetune == "none" and self.detection_weight:
            raise ValueError("detection_weight goes with finetune = 'transformer' or 'all'")
        if not (self.cost_class or self.cost_bbox or self.cost_giou):
            raise ValueError("cost_class, cost_bbox and cost_giou are all 0: nothing tells one detection from another")
        if self.match != "hungarian":
            self._refuse("match = 'hungarian'", "cost_class", "cost_bbox", "cost_giou")
        if self.schedule != "step":
            self._refuse("schedule = 'step'", "milestones", "gamma")
        if not self.scoring_weight:
            self._refuse("a scoring_weight", "scoring_loss", "scoring_target", "scoring_class")

    def _refuse(self, choice: str, *names: str) -> None:
        """Raise ValueError if one of these fields, of another choice, is not as it was."""
        for name in names:
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} goes with {choice}")


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step, counted from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "cosine":
        done = (step - config.warmup) / (config.steps - config.warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    drops = sum(step / config.steps >= milestone for milestone in config.milestones)
    return config.lr * (1 / (1 / config.gamma) ** drops)  # so that twice a tenth is a hundredth to the last bit
