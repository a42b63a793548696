"""Loss of heads that tell a set of boxes and masks with classes: Mask DINO and DI-MaskDINO.

Every prediction is matched with the objects of its image anew, by class, box and mask together; then the focal loss of
the class, L1 and GIoU of the boxes, binary cross-entropy and dice of the masks. Denoising queries need no matching:
they know which object they came from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .assign import best_pairs, box_cost, focal_cost
from .detection import pair_terms
from .mask_terms import MaskTerms
from .points import generator_on
from .view_objects import ViewObjects

if TYPE_CHECKING:
    from ..heads.mask_dino.denoising import Denoising
    from ..heads.mask_dino.prediction import LayerPrediction, Predictions


@dataclass(frozen=True)
class BoxSetLoss:
    """What counts how much, in loss and matching."""

    class_weight: float
    l1_weight: float
    giou_weight: float
    masks: MaskTerms

    def terms(
        self,
        predictions: "Predictions",
        objects: Sequence[ViewObjects],
        denoising: "Denoising | None",
        generator: torch.Generator,
        count: int | None = None,
    ) -> dict[str, Tensor]:
        """The weighted terms by name; the loss is their sum.

        class, l1, giou, bce, dice: of the `layers`, each summed over them. selected, interaction, denoising: all
        terms of those predictions together; no interaction where the head has none.
        denoising: the queries that the `denoised` predictions are of.
        generator: on the CPU. count: the objects that all is divided by, where these images are a part of a batch.
        """
        count = max(1, sum(map(len, objects)) if count is None else count)
        device = predictions.selected.boxes.device
        generator = generator_on(device, generator)
        with torch.autocast(device.type, enabled=False):
            layers = [self._matched(one, objects, count, generator) for one in predictions.layers]
            selected = self._matched(predictions.selected, objects, count, generator)
            interaction = [self._matched(one, objects, count, generator) for one in predictions.interaction]
            denoised: list[dict[str, Tensor]] = []
            if denoising is not None:
                shared = count * denoising.groups
                denoised = [
                    self._terms(one, objects, denoising.pairs, shared, generator) for one in predictions.denoised
                ]
            terms = {name: _sum((one[name] for one in layers), device) for name in layers[0]}
            terms["selected"] = _sum(selected.values(), device)
            if interaction:
                terms["interaction"] = _sum((value for one in interaction for value in one.values()), device)
            terms["denoising"] = _sum((value for one in denoised for value in one.values()), device)
        return terms

    def _matched(
        self, prediction: "LayerPrediction", objects: Sequence[ViewObjects], count: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        pairs = [self._match(prediction, row, own, generator) for row, own in enumerate(objects)]
        return self._terms(prediction, objects, pairs, count, generator)

    @torch.no_grad()
    def _match(
        self, prediction: "LayerPrediction", row: int, objects: ViewObjects, generator: torch.Generator
    ) -> Tensor:
        """(query, object) pairs of one image; without masks, by class and box."""
        if not len(objects):
            return torch.zeros((0, 2), dtype=torch.int64)
        probs, boxes = prediction.class_logits[row].float().sigmoid(), prediction.boxes[row].float()
        cost = self.class_weight * focal_cost(probs[:, objects.labels])
        cost = cost + box_cost(boxes, objects.boxes, l1=self.l1_weight, giou=self.giou_weight)
        if prediction.mask_logits is not None:
            cost = cost + self.masks.cost(prediction.mask_logits[row], objects, generator)
        return best_pairs(cost)

    def _terms(
        self,
        prediction: "LayerPrediction",
        objects: Sequence[ViewObjects],
        pairs: Sequence[Tensor],
        count: int,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The weighted terms of one prediction over these (query, object) pairs of each image."""
        truth = [(own.labels, own.boxes) for own in objects]
        terms = pair_terms(prediction.class_logits.float(), prediction.boxes.float(), truth, pairs, count)
        weights = {"class": self.class_weight, "l1": self.l1_weight, "giou": self.giou_weight}
        terms = {name: weight * terms[name] for name, weight in weights.items()}
        if prediction.mask_logits is not None:
            terms |= self.masks.terms(list(prediction.mask_logits), objects, pairs, count, generator)
        return terms


def _sum(values: Iterable[Tensor], device: torch.device) -> Tensor:
    """0 of nothing."""
    found = list(values)
    return torch.stack(found).sum() if found else torch.zeros((), device=device)
