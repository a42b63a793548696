"""What every frozen detector gives, feature maps and chosen detections, and what it says about itself."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from featcache import LevelSpec, Moments

from ..data.transforms import Transform
from ..errors import PipelineError

if TYPE_CHECKING:
    from .hdetr import Decoded


@dataclass(frozen=True)
class Features:
    """A batch of b images as the detector saw them. Detections come best score first; padding of a batch is zero."""

    maps: dict[str, Tensor]
    """Name -> "b c h w" float: encoder maps, C1, and whatever else the detector's config taps; of a cache those that
    were asked for."""
    encoder: tuple[str, ...]
    """Which of the maps are encoder memory, fine to coarse."""
    strides: dict[str, int]
    """Name -> input pixels per cell."""
    queries: Tensor
    """Query embeddings after the last decoder layer, one row per detection. "b n d" """
    boxes: Tensor
    """cxcywh in 0-1 of the unpadded view. "b n 4" """
    scores: Tensor
    """Probability of the label. "b n" """
    labels: Tensor
    """int64, position in the categories sorted by id: 0..K-1. "b n" """
    input_hw: Tensor
    """int64, height and width of each network input without padding. "b 2" """
    moments: dict[str, Moments] = field(default_factory=dict[str, Moments])
    """Name -> mean "b c" and covariance "b c c" of a map's channels, of the cells that are not padding; only of maps
    that a cache stores them for."""
    partial: frozenset[str] = frozenset()
    """Maps of which a cache gave only what the boxes that learn read; the rest of them is zero."""

    def map(self, name: str) -> Tensor:
        """One of the maps, "b c h w"; raises PipelineError where it is not among those that were read or computed."""
        try:
            return self.maps[name]
        except KeyError:
            raise PipelineError(
                f"the features at hand hold no map '{name}', only {', '.join(self.maps) or 'detections'}",
                "of a cache only what a head says it looks at is read: name it in the head's `maps_read`",
            ) from None

    @property
    def levels(self) -> list[Tensor]:
        """The encoder maps, fine to coarse, each "b c h w"; see `map`."""
        return [self.map(name) for name in self.encoder]

    @property
    def c1(self) -> Tensor:
        """The backbone's stride-4 map, "b c h w"; see `map`."""
        return self.map("c1")

    def image(self, row: int) -> "Features":
        """One image of the batch, b = 1, its maps cut to the cells that are not padding."""
        return self.rows(slice(row, row + 1))

    def rows(self, rows: slice | list[int]) -> "Features":
        """Some images of the batch, their maps cut to the largest of them: of images of one size, without padding."""
        detections = {name: getattr(self, name)[rows] for name in ("queries", "boxes", "scores", "labels", "input_hw")}
        moments = {name: Moments(both.mean[rows], both.covariance[rows]) for name, both in self.moments.items()}
        largest = self.input_hw[rows].amax(0)
        maps: dict[str, Tensor] = {}
        for name, values in self.maps.items():
            h, w = (-(-largest // self.strides[name])).tolist()
            maps[name] = values[rows, :, :h, :w]
        return replace(self, maps=maps, moments=moments, **detections)


class FrozenDetector(Protocol):
    """A detector that never changes. One file per family; `registry.py` builds them by name."""

    name: str
    levels: tuple[LevelSpec, ...]
    """Every map it gives, with the largest size it can have."""
    encoder: tuple[str, ...]
    """Names of the encoder maps among them, fine to coarse."""
    detections: int
    """Most detections per image."""
    query_dim: int
    transform: Transform
    category_ids: tuple[int, ...] | None
    """COCO category ids it was trained on, by increasing id; None if it only knows their order."""
    category_names: tuple[str, ...] | None
    """What it calls its labels, in their order; None if it does not say."""
    classes: int
    """How many labels it gives: 0..classes-1."""
    identity: dict[str, Any]
    """Everything that could change its numbers, JSON; part of the fingerprint of a cache."""

    def detect(self, images: Tensor) -> Features:
        """Features of network inputs of one size, float "b 3 h w" from `transform`, on the detector's device."""
        ...


Part = Literal["none", "transformer", "all"]
"""What of a detector learns; `transformer`: all but the backbone."""


@runtime_checkable
class LearningDetector(FrozenDetector, Protocol):
    """A detector that can be trained further: those of PyTorch that are ours."""

    network: nn.Module
    """Its `state_dict` is what a weights file holds."""

    def let_learn(self, part: Part) -> None:
        """Which of its parameters take gradients; batch norms never do."""
        ...

    def learn(self, images: Tensor) -> tuple[Features, list["Decoded"]]:
        """As `detect`, with the graph behind maps and queries; and what the network computed, for its own losses."""
        ...

    def columns(self, labels: Tensor) -> Tensor:
        """Labels -> columns of the class logits. int64 "k" """
        ...


def source_of(model: FrozenDetector) -> dict[str, Any]:
    """What made the features: `CacheSpec.source`, to which a trained head is tied."""
    return {**model.identity, "encoder": list(model.encoder)}


def top_detections(probs: Tensor, count: int, *, de_duplicate: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best (query, class) pairs of class probabilities "b q k", as the DETR family chooses them.

    Returns scores "b n" (decreasing), query positions "b n" and labels "b n"; n is `count` or all the pairs there are.
    One query may come with several labels, unless `de_duplicate` leaves it only its best. Equal scores keep the order
    of (query, class), so a run repeats exactly.
    """
    if de_duplicate:
        best, labels = probs.max(2)
        scores, queries = torch.sort(best, dim=1, descending=True, stable=True)
        scores, queries = scores[:, :count], queries[:, :count]
        return scores, queries, labels.gather(1, queries)
    scores, order = torch.sort(probs.flatten(1), dim=1, descending=True, stable=True)
    scores, order = scores[:, :count], order[:, :count]
    return scores, order // probs.shape[2], order % probs.shape[2]
