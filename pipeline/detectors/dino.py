"""DINO-DETR: two stages, shared heads, a query position that follows its box; without the denoising part of training.

Numbers equal those of the official code, eps and embeddings included; `checkpoints.py` reads its files.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .deformable import MLP, DecoderLayer, FeatureEncoder, ProposalHead
from .hdetr import Decoded, select
from .positions import Pyramid, box_positions, inverse_sigmoid

EPS = 1e-3
"""Of `inverse_sigmoid`, in the refinement and in the predicted boxes."""
MAP_TEMPERATURE = 20.0
"""Of the sine embeddings of the maps, which take the far edge of each cell."""


class Dino(nn.Module):
    """The network. `backbone` gives maps of strides 4, 8, 16, 32 and tells their `channels`.

    classes: how many class logits. The other sizes are fields of `NativeConfig`, which has those of the official ones.
    levels: 4 starts at stride 8, 5 at stride 4. query_tap: whether `Decoded.states` are those after the decoder's last
    norm, which the heads read ("normed"), or those before it, which the next layer reads ("raw").
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
        query_tap: Literal["normed", "raw"],
    ) -> None:
        super().__init__()
        self.backbone, self.query_tap = backbone, query_tap
        channels: Sequence[int] = backbone.channels  # pyright: ignore[reportAssignmentType]
        sizes = {"levels": levels, "heads": heads, "points": points, "feed_forward": feed_forward}
        self.encoder = FeatureEncoder(
            channels[5 - levels :],  # all maps but the coarsest level's are of the backbone
            width=width,
            layers=encoder_layers,
            temperature=MAP_TEMPERATURE,
            offset=0,
            **sizes,
        )
        self.proposals = ProposalHead(width, classes)
        self.tgt_embed = nn.Embedding(queries, width)
        self.ref_point_head = MLP([2 * width, width, width])
        self.layers = nn.ModuleList(DecoderLayer(width, **sizes) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, classes)
        self.bbox_embed = MLP([width, width, width, 4])

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Decoded:
        """images: normalised, "b 3 H W". padding: True where an image of the batch is padding, "b H W"."""
        if padding is None:
            padding = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
        maps = self.backbone(images)
        tokens, positions, pyramid = self.encoder.pyramid(maps[5 - len(self.encoder.input_proj) :], padding)
        with torch.autocast(images.device.type, enabled=False):  # only the backbone in half precision, as for H-DETR
            memory = self.encoder(tokens, positions, pyramid)
            proposal_logits, proposal_boxes = self.proposals(memory[-1], pyramid)
            best_class = proposal_logits.amax(-1)
            references = select(best_class, proposal_boxes, self.tgt_embed.num_embeddings).sigmoid()
            states, logits, boxes = self.decode(self.tgt_embed.weight, references, memory[-1], pyramid)
        return Decoded(
            memory,
            pyramid,
            maps[0],
            states,
            logits,
            boxes,
            proposal_logits,
            proposal_boxes,
            proposals_know_classes=True,
        )

    def decode(
        self, content: Tensor, references: Tensor, memory: Tensor, pyramid: Pyramid
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """States (see `query_tap`), class logits and boxes of each layer.

        content: what the queries start from, "q c". references: the proposals, cxcywh in 0-1, "b q 4".
        """
        ratios = pyramid.valid_ratios.repeat(1, 1, 2)[:, None]  # "b 1 l 4"
        queries = content[: references.shape[1]].expand(len(memory), -1, -1)
        states, logits, boxes = list[Tensor](), list[Tensor](), list[Tensor]()
        for layer in self.layers:
            in_maps = references[:, :, None] * ratios  # "b q l 4"
            queries = layer(queries, self.place(in_maps[:, :, 0]), in_maps, memory, pyramid)
            normed, anchors = self.norm(queries), inverse_sigmoid(references, EPS)
            states.append(normed if self.query_tap == "normed" else queries)
            logits.append(self.class_embed(normed))
            boxes.append((self.bbox_embed(normed) + anchors).sigmoid())
            # The next layer starts from the box of the raw queries, which is not the predicted one.
            references = (self.bbox_embed(queries) + anchors).sigmoid().detach()
        return states, logits, boxes

    def place(self, boxes: Tensor) -> Tensor:
        """Position of queries whose boxes are these, cxcywh in 0-1 of the finest padded map. "b q 4" -> "b q c" """
        return self.ref_point_head(box_positions(boxes, self.tgt_embed.embedding_dim))
