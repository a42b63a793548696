"""Loss of heads that tell a set of masks with classes: every prediction is matched with the objects of its image anew.

Mask2Former, section 3.3: class, binary cross-entropy and dice, the last two at points; the same after every layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .assign import match_masks
from .losses import bce_loss, dice_loss
from .points import generator_on, random_points, sample_logits, uncertain_points
from .view_objects import ViewObjects

if TYPE_CHECKING:
    from ..heads.mask2former.decoder import Prediction


@dataclass(frozen=True)
class SetLoss:
    """What counts how much, and at how many points it is looked at."""

    class_weight: float
    bce_weight: float
    dice_weight: float
    no_object: float
    """Of queries without object in the class term, beside 1 for the others."""
    points: int
    oversample: float
    importance: float
    """See `uncertain_points`."""

    def terms(
        self, layers: Sequence[Sequence["Prediction"]], objects: Sequence[ViewObjects], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The weighted terms by name, each summed over the layers; the loss is their sum.

        layers: predictions as [layer][image]. generator: on the CPU.
        """
        generator = generator_on(layers[0][0].mask_logits.device, generator)
        each = [self._layer(predictions, objects, generator) for predictions in layers]
        return {name: torch.stack([terms[name] for terms in each]).sum() for name in each[0]}

    def _layer(
        self, predictions: Sequence["Prediction"], objects: Sequence[ViewObjects], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The terms of one layer's predictions, one for each image."""
        classes: list[Tensor] = []
        logits: list[Tensor] = []
        truth: list[Tensor] = []
        for one, own in zip(predictions, objects, strict=True):
            pairs = self._match(one, own, generator).to(own.labels.device)
            label = torch.full((len(one.class_logits),), one.class_logits.shape[1] - 1, device=own.labels.device)
            label[pairs[:, 0]] = own.labels[pairs[:, 1]]
            classes.append(label)
            if len(pairs):
                matched = one.mask_logits[pairs[:, 0]].float()
                at = uncertain_points(matched, self.points, self.oversample, self.importance, generator, "zeros")
                logits.append(sample_logits(matched, at, "zeros"))
                truth.append(own.chosen(pairs[:, 1]).sample(at))
        class_logits = torch.cat([one.class_logits for one in predictions]).float()
        weight = class_logits.new_ones(class_logits.shape[1])
        weight[-1] = self.no_object
        terms = {"class": self.class_weight * F.cross_entropy(class_logits, torch.cat(classes), weight)}
        if not logits:
            return {**terms, "bce": class_logits.new_zeros(()), "dice": class_logits.new_zeros(())}
        # Over all objects, also those that no query is left for; the losses are means over those that are matched.
        share = sum(map(len, logits)) / sum(map(len, objects))
        at_points, expected = torch.cat(logits), torch.cat(truth)
        terms["bce"] = self.bce_weight * share * bce_loss(at_points, expected)
        terms["dice"] = self.dice_weight * share * dice_loss(at_points, expected)
        return terms

    @torch.no_grad()
    def _match(self, prediction: "Prediction", objects: ViewObjects, generator: torch.Generator) -> Tensor:
        """(query, object) pairs of one image, told by the same points for all its masks."""
        queries = len(prediction.class_logits)
        if not len(objects) or not queries:
            return torch.zeros((0, 2), dtype=torch.int64)
        points = random_points((1, self.points), generator)
        logits = sample_logits(prediction.mask_logits.float(), points.expand(queries, -1, 2), "zeros")
        weights = (self.class_weight, self.bce_weight, self.dice_weight)
        return match_masks(prediction.class_logits, logits, objects.labels, objects.sample(points[0]), weights)
