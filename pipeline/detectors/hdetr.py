"""H-Deformable-DETR: two stages, mixed query selection, box refinement; only its one-to-one branch runs at inference.

Numbers equal those of the official code, eps and embeddings included; `checkpoints.py` reads its files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .deformable import MLP, DecoderLayer, FeatureEncoder, ProposalHead
from .positions import Pyramid, inverse_sigmoid, sine_embedding

EPS = 1e-5
"""Of `inverse_sigmoid` in the refinement of boxes."""
TEMPERATURE = 10000.0
"""Of all sine embeddings."""


@dataclass(frozen=True)
class Decoded:
    """What a two-stage DETR computes, per decoder layer; q queries, best proposal first."""

    memory: list[Tensor]
    """Tokens after each encoder layer, "b s c"."""
    pyramid: Pyramid
    c1: Tensor
    """The backbone's stride-4 map. "b c h w" """
    states: list[Tensor]
    """Queries after each decoder layer, "b q c"."""
    logits: list[Tensor]
    """Class logits of each layer, "b q k"."""
    boxes: list[Tensor]
    """cxcywh in 0-1 of the unpadded image, of each layer. "b q 4" """
    proposal_logits: Tensor
    """First stage, every token. "b s k" """
    proposal_boxes: Tensor
    """First stage, before sigmoid; +inf where no proposal can be. "b s 4" """
    proposals_know_classes: bool = False
    """Whether the first stage was trained to tell classes (DINO), or only objects from background, in column 0."""


class HDetr(nn.Module):
    """The network. `backbone` gives maps of strides 4, 8, 16, 32 and tells their `channels`.

    classes: how many class logits. The other sizes are fields of `NativeConfig`, which has those of the official ones.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        classes: int,
        queries: int,
        width: int,
        levels: int,
        encoder_layers: int,
        decoder_layers: int,
        heads: int,
        points: int,
        feed_forward: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        channels: Sequence[int] = backbone.channels  # pyright: ignore[reportAssignmentType]
        sizes = {"levels": levels, "heads": heads, "points": points, "feed_forward": feed_forward}
        self.encoder = FeatureEncoder(
            channels[1:], width=width, layers=encoder_layers, temperature=TEMPERATURE, offset=-0.5, **sizes
        )
        self.proposals = ProposalHead(width, classes)
        self.pos_trans = nn.Linear(2 * width, 2 * width)
        self.pos_trans_norm = nn.LayerNorm(2 * width)
        self.query_embed = nn.Embedding(queries, width)
        self.layers = nn.ModuleList(DecoderLayer(width, **sizes) for _ in range(decoder_layers))
        self.class_embed = nn.ModuleList(nn.Linear(width, classes) for _ in range(decoder_layers))
        self.bbox_embed = nn.ModuleList(MLP([width, width, width, 4]) for _ in range(decoder_layers))

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Decoded:
        """images: normalised, "b 3 H W". padding: True where an image of the batch is padding, "b H W"."""
        if padding is None:
            padding = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
        c1, *maps = self.backbone(images)
        tokens, positions, pyramid = self.encoder.pyramid(maps, padding)
        with torch.autocast(
            images.device.type, enabled=False
        ):  # as the official code: only the backbone in half precision
            memory = self.encoder(tokens, positions, pyramid)
            proposal_logits, proposal_boxes = self.proposals(memory[-1], pyramid)
            references = select(proposal_logits[..., 0], proposal_boxes, self.query_embed.num_embeddings).sigmoid()
            states, logits, boxes = self.decode(self.query_embed.weight, references, memory[-1], pyramid)
        return Decoded(memory, pyramid, c1, states, logits, boxes, proposal_logits, proposal_boxes)

    def decode(
        self, content: Tensor, references: Tensor, memory: Tensor, pyramid: Pyramid
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """States, class logits and boxes of each layer.

        content: what the queries start from, "q c". references: the proposals, cxcywh in 0-1, "b q 4".
        """
        width = content.shape[1]
        # Mixed selection: a query's place comes from its proposal, its content is learned; half of pos_trans is idle.
        place = self.pos_trans_norm(self.pos_trans(sine_embedding(references * (2 * math.pi), width // 2, TEMPERATURE)))
        place = place[..., :width]
        ratios = pyramid.valid_ratios.repeat(1, 1, 2)[:, None]  # "b 1 l 4"
        queries = content[: references.shape[1]].expand(len(memory), -1, -1)  # a small image may have fewer proposals
        states, logits, boxes = list[Tensor](), list[Tensor](), list[Tensor]()
        for layer, class_embed, bbox_embed in zip(self.layers, self.class_embed, self.bbox_embed, strict=True):
            queries = layer(queries, place, references[:, :, None] * ratios, memory, pyramid)
            states.append(queries)
            logits.append(class_embed(queries))
            boxes.append((bbox_embed(queries) + inverse_sigmoid(references, EPS)).sigmoid())
            references = boxes[-1].detach()
        return states, logits, boxes


def select(scores: Tensor, boxes: Tensor, count: int) -> Tensor:
    """The boxes "b s 4" of the `count` highest scores "b s", best first, without gradient. "b count 4" """
    best = scores.topk(min(count, scores.shape[1]), dim=1).indices
    return boxes.detach().gather(1, best[..., None].expand(-1, -1, 4))
