"""Denoising training: queries that start from noisy ground truth and learn to tell the object they came from.

DN-DETR's, as Mask DINO has it. No query has to be found for these objects, so boxes and masks learn from the first step
on. The queries of an image come in groups, each with all its objects; images with fewer objects than another of the
batch fill their groups up with rows of zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...detectors.positions import inverse_sigmoid
from ...training.view_objects import ViewObjects
from .prediction import EPS


@dataclass(frozen=True)
class Denoising:
    """The n denoising queries of each of b images."""

    content: Tensor
    """Embedding of the noisy label. "b n c" """
    references: Tensor
    """The noisy box, cxcywh in 0-1 of the view, before sigmoid. "b n 4" """
    groups: int
    """How many queries came from each object."""
    pairs: list[Tensor]
    """Per image (query, object): which object each came from; the others are filling. int64 "m 2" """

    def attention_mask(self, queries: int) -> Tensor:
        """Where self-attention may not look, when so many other queries follow these: True, bool "n+q n+q".

        The others do not see what came from the ground truth, nor does one group see another. Filling is seen.
        """
        n = self.content.shape[1]
        group = torch.arange(n, device=self.content.device) // (n // self.groups)
        group = torch.cat([group, group.new_full((queries,), -1)])
        return (group[:, None] != group) & (group >= 0)


def denoising_queries(
    objects: Sequence[ViewObjects],
    label_embedding: nn.Embedding,
    *,
    queries: int,
    noise: float,
    generator: torch.Generator,
) -> Denoising | None:
    """Queries from the objects of each image; None where there are no objects, or more in an image than `queries`.

    label_embedding: a row for each class. queries: about how many an image gets, in groups as large as its batch's most
    objects. noise: half of this share of the labels become random ones; centres move by up to this share of half of
    width and height, width and height change by up to this share. generator: on the CPU.
    """
    counts = [len(own) for own in objects]
    most = max(counts, default=0)
    groups = queries // most if most else 0
    if not groups:
        return None
    device = label_embedding.weight.device
    labels = torch.cat([own.labels for own in objects]).to(device).repeat(groups)
    boxes = torch.cat([own.boxes for own in objects]).to(device).repeat(groups, 1)

    chosen = torch.rand(len(labels), generator=generator) < noise / 2
    others = torch.randint(label_embedding.num_embeddings, (len(labels),), generator=generator)
    labels = torch.where(chosen.to(device), others.to(device), labels)
    moves = (torch.rand(boxes.shape, generator=generator) * 2 - 1).to(device) * noise
    reach = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
    boxes = boxes + moves * reach  # `inverse_sigmoid` cuts them to the view

    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).repeat(groups).to(device)
    own_rows = [_rows(count, most, groups) for count in counts]
    # group by group, in each the objects of the first image, then of the next: the order of `labels`
    row = torch.cat([rows.view(groups, -1) for rows in own_rows], dim=1).flatten().to(device)
    content = label_embedding.weight.new_zeros(len(counts), groups * most, label_embedding.embedding_dim)
    references = boxes.new_zeros(len(counts), groups * most, 4)
    return Denoising(
        content=content.index_put((image, row), label_embedding(labels)),
        references=references.index_put((image, row), inverse_sigmoid(boxes, EPS)),
        groups=groups,
        pairs=[
            torch.stack([rows, torch.arange(count).repeat(groups)], dim=1)
            for rows, count in zip(own_rows, counts, strict=True)
        ],
    )


def _rows(count: int, most: int, groups: int) -> Tensor:
    """Where the objects of an image stand in each of its groups: int64 "groups*count", group by group."""
    return (torch.arange(groups)[:, None] * most + torch.arange(count)).flatten()
