"""Masks of whole images, told by a set of queries, against the objects: what a pair costs and what it loses.

Binary cross-entropy and dice at points, as Mask2Former takes them and Mask DINO after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .assign import mask_cost
from .losses import bce_loss, dice_loss
from .points import random_points, sample_at, sample_logits, uncertain_points
from .view_objects import ViewObjects


@dataclass(frozen=True)
class MaskTerms:
    """What counts how much, and at how many points it is looked at."""

    bce_weight: float
    dice_weight: float
    points: int
    oversample: float
    importance: float
    """See `uncertain_points`."""

    def cost(self, mask_logits: Tensor, objects: ViewObjects, generator: torch.Generator) -> Tensor:
        """Of each pair of query and object of an image, told by the same random points. "q h w" -> "q k" """
        points = random_points((self.points,), generator)
        logits = sample_at(mask_logits.float(), points)
        return mask_cost(logits, objects.sample(points), bce=self.bce_weight, dice=self.dice_weight)

    def terms(
        self,
        mask_logits: Sequence[Tensor],
        objects: Sequence[ViewObjects],
        pairs: Sequence[Tensor],
        count: float,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The weighted terms by name, sums over `count`.

        mask_logits: "q h w" of each image. pairs: its (query, object), int64 "m 2".
        """
        looked: list[Tensor] = []
        truth: list[Tensor] = []
        for logits, own, chosen in zip(mask_logits, objects, pairs, strict=True):
            if len(chosen):
                queries, rows = chosen.to(logits.device).unbind(1)
                matched = logits[queries].float()
                at = uncertain_points(matched, self.points, self.oversample, self.importance, generator, "zeros")
                looked.append(sample_logits(matched, at, "zeros"))
                truth.append(own.sample(at, rows))
        if not looked:
            zero = mask_logits[0].new_zeros((), dtype=torch.float32)
            return {"bce": zero, "dice": zero}
        at_points, expected = torch.cat(looked), torch.cat(truth)
        share = len(at_points) / count  # the losses are means over the pairs
        return {
            "bce": self.bce_weight * share * bce_loss(at_points, expected),
            "dice": self.dice_weight * share * dice_loss(at_points, expected),
        }
