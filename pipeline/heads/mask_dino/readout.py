"""What a query says: class, box and mask, through one norm and one head each for all layers and the selection."""

import torch
from torch import Tensor, nn

from ...detectors.deformable import MLP
from .prediction import LayerPrediction


class Readout(nn.Module):
    """The shared heads. b images, q queries, c channels."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, classes)
        self.mask_embed = MLP([width, width, width, width])
        self.box_embed = box_head(width)

    def forward(self, states: Tensor, boxes: Tensor, pixels: Tensor | None) -> LayerPrediction:
        """states: "b q c". boxes: already told, "b q 4". pixels: mask features "b c h w"; None: no masks.

        States of decoder layers come normed and are so a second time, as in the official code.
        """
        normed = self.norm(states)
        masks = None
        if pixels is not None:
            masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(normed), pixels)
        return LayerPrediction(self.class_embed(normed), boxes, masks)

    def best(self, states: Tensor, count: int, known: Tensor | None = None) -> Tensor:
        """Which are the `count` surest of any class, best first: rows of "b q c", int64 "b count".

        known: class logits that are added, "b q classes".
        """
        logits = self.class_embed(states) if known is None else self.class_embed(states) + known
        return logits.amax(-1).topk(min(count, states.shape[1]), dim=1).indices


def box_head(width: int) -> MLP:
    """Tells how far a box moves; at first not at all."""
    head = MLP([width, width, width, 4])
    nn.init.zeros_(head.layers[-1].weight)  # pyright: ignore[reportArgumentType]
    nn.init.zeros_(head.layers[-1].bias)  # pyright: ignore[reportArgumentType]
    return head


def moved(head: MLP, states: Tensor, references: Tensor) -> Tensor:
    """The boxes that states move their references to, cxcywh in 0-1, in float32 inside autocast too.

    references: the same before sigmoid, "b q 4".
    """
    with torch.autocast(states.device.type, enabled=False):
        return (head(states.float()) + references).sigmoid()


def rows(values: Tensor, chosen: Tensor) -> Tensor:
    """Of each image the chosen rows: "b s c", int64 "b k" -> "b k c"."""
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[2]))
