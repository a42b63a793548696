"""Loss of heads that tell a set of masks with classes: every prediction is matched with the objects of its image anew.

Mask2Former, section 3.3: class, binary cross-entropy and dice, the last two at points; the same after every layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .assign import best_pairs
from .mask_terms import MaskTerms
from .points import generator_on
from .view_objects import ViewObjects

if TYPE_CHECKING:
    from ..heads.mask2former.decoder import Prediction


@dataclass(frozen=True)
class SetLoss:
    """What counts how much, in loss and matching."""

    class_weight: float
    no_object: float
    """Of queries without object in the class term, beside 1 for the others."""
    masks: MaskTerms

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
        pairs = [self._match(one, own, generator) for one, own in zip(predictions, objects, strict=True)]
        classes: list[Tensor] = []
        for one, own, chosen in zip(predictions, objects, pairs, strict=True):
            label = torch.full((len(one.class_logits),), one.class_logits.shape[1] - 1, device=own.labels.device)
            chosen = chosen.to(label.device)
            label[chosen[:, 0]] = own.labels[chosen[:, 1]]
            classes.append(label)
        class_logits = torch.cat([one.class_logits for one in predictions]).float()
        weight = class_logits.new_ones(class_logits.shape[1])
        weight[-1] = self.no_object
        loss = F.cross_entropy(class_logits, torch.cat(classes), weight)
        count = max(1, sum(map(len, objects)))  # also those that no query is left for
        mask_logits = [one.mask_logits for one in predictions]
        return {"class": self.class_weight * loss, **self.masks.terms(mask_logits, objects, pairs, count, generator)}

    @torch.no_grad()
    def _match(self, prediction: "Prediction", objects: ViewObjects, generator: torch.Generator) -> Tensor:
        """(query, object) pairs of one image."""
        if not len(objects) or not len(prediction.class_logits):
            return torch.zeros((0, 2), dtype=torch.int64)
        probs = prediction.class_logits.float().softmax(-1)[:, objects.labels]
        return best_pairs(self.masks.cost(prediction.mask_logits, objects, generator) - self.class_weight * probs)
