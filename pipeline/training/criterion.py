"""From a head's output and its targets to the loss of a step."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import TrainConfig
from .losses import bce_loss, dice_loss, mask_iou, scoring_loss
from .points import grid_points, sample_logits, uncertain_points
from .targets import Targets

if TYPE_CHECKING:
    from ..heads.base import HeadOutput


def loss_terms(
    output: "HeadOutput", targets: Targets, config: TrainConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """The weighted terms, by name; the loss is their sum."""
    logits = output.mask_logits
    side = logits.shape[-1]
    fine = config.loss_grid * side
    if config.loss == "full":
        points = grid_points(len(logits), fine, logits.device)
    else:
        count = max(1, int(config.points * fine * fine))
        points = uncertain_points(logits, count, config.oversample, config.importance, generator)
    at_points, truth = sample_logits(logits, points), targets.sample(points)
    terms = {
        "bce": config.bce_weight * bce_loss(at_points, truth),
        "dice": config.dice_weight * dice_loss(at_points, truth),
    }
    if output.iou is not None:
        cells = grid_points(len(logits), side, logits.device)
        inside = targets.sample(cells)
        areas = targets.areas if config.scoring_target == "object" else inside.mean(1) * targets.box_areas
        target = mask_iou(logits.detach().flatten(1), inside, targets.box_areas, areas)
        labels = targets.labels if config.scoring_class == "truth" else targets.detected_labels
        terms["scoring"] = config.scoring_weight * scoring_loss(output.iou, target, labels, config.scoring_loss)
    return terms
