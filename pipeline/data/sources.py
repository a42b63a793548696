"""Where features come from: a cache, or a detector at work (`live.py`). One interface, the same tensors."""

from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from featcache import Cache, CacheSpec, Entry, GroundTruth, ImageInfo, Loader, Moments, Wanted

from ..detectors.base import Features
from ..detectors.device import host_threads
from ..detectors.hdetr import Decoded
from ..errors import PipelineError
from .coco import Category
from .panoptic import PANOPTIC

T = TypeVar("T")
Pair = tuple[int, str]
"""(index of the image, view)"""


@dataclass(frozen=True)
class Batch:
    """b images with their features and annotations."""

    features: Features
    counts: list[int]
    """Detections of each image; rows of `features` beyond them are padding."""
    ground_truth: list[GroundTruth]
    """In the frame of the original image, whatever the view."""
    infos: list[ImageInfo]
    views: list[str]
    segments_of: Callable[[int], GroundTruth] | None = field(default=None, repr=False, compare=False)
    """The panoptic segments of an image by its id; None where the source has none."""
    decoded: list[tuple[list[int], Decoded]] = field(default_factory=list[tuple[list[int], Decoded]], repr=False)
    """Of a detector that learns: what it computed, each for the rows named beside it; of any other, nothing."""
    derived: dict[Any, Any] = field(default_factory=dict[Any, Any], repr=False, compare=False)
    """What `once` has worked out."""

    def __len__(self) -> int:
        return len(self.infos)

    def split(self, size: int) -> "list[Batch]":
        """Parts of up to so many images; 0 for the batch itself. Heads that share the batch share its parts."""
        if not 0 < size < len(self):
            return [self]
        return self.once(("split", size), lambda: [self._rows(i, i + size) for i in range(0, len(self), size)])

    def _rows(self, start: int, stop: int) -> "Batch":
        rows = slice(start, stop)
        lists = {name: getattr(self, name)[rows] for name in ("counts", "ground_truth", "infos", "views")}
        return Batch(features=self.features.rows(rows), segments_of=self.segments_of, **lists)

    def segments(self, row: int) -> GroundTruth:
        """The panoptic segments of an image, in the frame of the original; none where it is not so annotated.

        Raises PipelineError where the source has no such ground truth.
        """
        if self.segments_of is None:
            raise PipelineError("there is no panoptic ground truth", "extract with --panoptic JSON")
        return self.segments_of(self.infos[row].id)

    def once(self, what: Hashable, work: Callable[[], T]) -> T:
        """The result of `work`, which follows from the batch and `what` alone: heads that share the batch share it."""
        if what not in self.derived:
            self.derived[what] = work()
        return self.derived[what]


class Stream(Protocol):
    """Batches without end; its position can be carried over to another process."""

    computing: float
    """Seconds that the source computed for the last batch, so that they are not taken for waiting."""

    def state_dict(self) -> dict[str, int]:
        """The position."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; raises CacheError where the source has other images than it had."""
        ...

    def seek(self, batches: int) -> None:
        """Continue as if this number of batches had been given since the very first."""
        ...

    def __iter__(self) -> Generator[Batch]: ...


class FeatureSource(Protocol):
    """Features by position and view; printed, it says in messages where they come from."""

    spec: CacheSpec
    """What a cache of these features says of itself."""
    device: torch.device
    categories: list[Category]

    def __len__(self) -> int: ...

    def batch(self, pairs: Sequence[Pair], levels: Sequence[str] | None = None) -> Batch:
        """The features of these images, padded to the largest of them; of the maps only `levels`, None for all."""
        ...

    def finished(self, views: Sequence[str]) -> list[int]:
        """Positions of the images there are in all of these views; raises PipelineError if there is none."""
        ...

    def stream(
        self,
        batch_size: int,
        *,
        views: Sequence[str],
        indices: Sequence[int],
        seed: int,
        levels: Sequence[str] | None = None,
        wanted: Wanted | None = None,
    ) -> Stream:
        """Shuffled batches of these images in these views, read ahead, pass after pass; the order is the seed's.

        levels: the maps that will be looked at, None for all.
        wanted: the rows of maps that will be looked at, where the others need not be read (`Features.partial`).
        """
        ...


class Cached:
    """Features out of a cache directory; nothing else is opened."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.cache, self.device = Cache(path), torch.device(device)
        self.spec = self.cache.spec
        self.categories: list[Category] = cast(Any, self.spec.recipe["categories"])

    def __len__(self) -> int:
        return len(self.cache)

    def __str__(self) -> str:
        return f"cache {self.cache.path}"

    def batch(self, pairs: Sequence[Pair], levels: Sequence[str] | None = None) -> Batch:
        """See `FeatureSource`."""
        entries = [self.cache.decode(self.cache.read(*pair, levels), self.device) for pair in pairs]
        return collate(entries, self.spec, self.segments_of)

    @property
    def segments_of(self) -> Callable[[int], GroundTruth] | None:
        """See `Batch`."""
        if PANOPTIC not in self.spec.further_truth:
            return None
        return lambda image_id: self.cache.ground_truth(self.cache.index_of(image_id), PANOPTIC)

    def finished(self, views: Sequence[str]) -> list[int]:
        """See `FeatureSource`; those that are extracted."""
        done = np.all([self.cache.done(view) for view in views], axis=0)
        if not done.any():
            raise PipelineError(f"no image of {self.cache.path} is extracted yet", "run its `extract` command again")
        return np.flatnonzero(done).tolist()

    def stream(
        self,
        batch_size: int,
        *,
        views: Sequence[str],
        indices: Sequence[int],
        seed: int,
        levels: Sequence[str] | None = None,
        wanted: Wanted | None = None,
    ) -> Stream:
        """See `FeatureSource`."""
        order: dict[str, Any] = {"views": views, "indices": indices, "seed": seed}
        how: dict[str, Any] = {"device": self.device, "threads": host_threads(self.device)}
        loader = Loader(self.cache, batch_size, **order, **how, levels=levels, wanted=wanted)
        return _CachedStream(loader, self)


class _CachedStream:
    """See `Stream`."""

    def __init__(self, loader: Loader, source: Cached) -> None:
        self._loader, self._source = loader, source
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict
        self.computing = 0.0

    def seek(self, batches: int) -> None:
        epoch, batch = divmod(batches, len(self._loader))
        place = {"epoch": epoch, "position": batch * self._loader.batch_size}
        self._loader.load_state_dict({**self._loader.state_dict(), **place})

    def __iter__(self) -> Generator[Batch]:
        while True:
            for entries in self._loader:
                yield collate(entries, self._source.spec, self._source.segments_of)


def maps_asked_for(asked: Iterable[Sequence[str] | None], spec: CacheSpec) -> tuple[str, ...]:
    """What is to be read for all who ask for maps, each once and in the order of the cache; None asks for all."""
    names = [spec.level_names if one is None else one for one in asked]
    return tuple(name for name in spec.level_names if any(name in one for one in names))


def collate(
    entries: Sequence[Entry], spec: CacheSpec, segments_of: Callable[[int], GroundTruth] | None = None
) -> Batch:
    """Entries of a cache as one batch; maps and detections are zero beyond each image's own."""
    features = Features(
        maps={name: pad_maps([entry.maps[name] for entry in entries]) for name in entries[0].maps},
        encoder=tuple(spec.source["encoder"]),
        strides={level.name: level.stride for level in spec.levels},
        queries=pad([entry.queries for entry in entries]),
        boxes=pad([entry.boxes for entry in entries]),
        scores=pad([entry.scores for entry in entries]),
        labels=pad([entry.labels for entry in entries]),
        input_hw=torch.tensor([entry.input_hw for entry in entries], device=entries[0].boxes.device),
        moments={name: Moments.stack([entry.moments[name] for entry in entries]) for name in entries[0].moments},
        partial=frozenset[str]().union(*(entry.partial for entry in entries)),
    )
    return Batch(
        features=features,
        counts=[len(entry.boxes) for entry in entries],
        ground_truth=[entry.ground_truth for entry in entries],
        infos=[entry.info for entry in entries],
        views=[entry.view for entry in entries],
        segments_of=segments_of,
    )


def pad_maps(maps: Sequence[Tensor]) -> Tensor:
    """Maps "c h w" -> "b c h w", zero beyond each, channels-last in memory as the cache gives them."""
    return pad([one.permute(1, 2, 0) for one in maps]).permute(0, 3, 1, 2)


def pad(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one rank, stacked, each zero beyond its own size."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    if all(list(tensor.shape) == shape for tensor in tensors):
        return torch.stack(list(tensors))
    padded = tensors[0].new_zeros((len(tensors), *shape))
    for row, tensor in enumerate(tensors):
        padded[(row, *(slice(size) for size in tensor.shape))] = tensor
    return padded
