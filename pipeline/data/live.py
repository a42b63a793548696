"""Features out of the detector itself, computed at each step: what a cache replaces, and what fine-tuning needs."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from featcache import CacheSpec, Entry, Moments, Wanted
from featcache.errors import CacheError

from ..detectors.base import Features, FrozenDetector, LearningDetector
from ..detectors.hdetr import Decoded
from .coco import Category, CocoSet, read_image
from .images import UnreadableImageError
from .sources import Batch, Pair, Stream, collate


class Live:
    """See `FeatureSource`. Images of one network size go through the detector together."""

    def __init__(
        self, detector: FrozenDetector, coco: CocoSet, spec: CacheSpec, device: torch.device | str = "cpu"
    ) -> None:
        """spec: of a cache that held these features (`extract.cache_spec`). device: the detector's."""
        self.detector, self.coco, self.spec = detector, coco, spec
        self.device = torch.device(device)
        self.categories: list[Category] = list(coco.categories)
        self.learner: LearningDetector | None = None
        """The detector, once it is to learn: its features then have the graph behind them."""

    def __len__(self) -> int:
        return len(self.coco.images)

    def __str__(self) -> str:
        return f"detector '{self.detector.name}'"

    def finished(self, views: Sequence[str]) -> list[int]:
        """See `FeatureSource`: every image, in whatever views."""
        return list(range(len(self)))

    def batch(self, pairs: Sequence[Pair], levels: Sequence[str] | None = None) -> Batch:
        """See `FeatureSource`; raises UnreadableImageError."""
        return self.compute(pairs, [self.read(pair) for pair in pairs], levels)

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
        """See `FeatureSource`; the order is the one of a cache of these images."""
        return _LiveStream(self, [(index, view) for index in indices for view in views], batch_size, seed, levels)

    def read(self, pair: Pair) -> Tensor:
        """The network input of an image, "3 h w"."""
        index, view = pair
        try:
            image = read_image(self.coco, index)
        except UnreadableImageError as error:
            hint = "repair it, or take it out of --annotations; `extract` leaves such images out and says which"
            raise UnreadableImageError(error.message, hint) from None
        return self.detector.transform(image, self.coco.view(index, view))

    def compute(self, pairs: Sequence[Pair], inputs: Sequence[Tensor], levels: Sequence[str] | None = None) -> Batch:
        """The batch of these network inputs, laid out as one from a cache that is asked for `levels`."""
        groups: dict[torch.Size, list[int]] = {}
        for row, one in enumerate(inputs):
            groups.setdefault(one.shape, []).append(row)
        entries: dict[int, Entry] = {}
        decoded: list[tuple[list[int], Decoded]] = []
        for rows in groups.values():
            images = torch.stack([inputs[row] for row in rows])
            if self.learner is None:
                features = self.detector.detect(images)
            else:
                features, outputs = self.learner.learn(images)
                decoded += _with_rows(outputs, rows)
            if levels is not None:
                features = replace(features, maps={name: features.map(name) for name in levels})
            entries |= {row: self._entry(pairs[row], features, place) for place, row in enumerate(rows)}
        batch = collate([entries[row] for row in range(len(pairs))], self.spec)
        batch.decoded.extend(decoded)
        return batch

    def _entry(self, pair: Pair, features: Features, place: int) -> Entry:
        height, width = features.input_hw[place].tolist()
        stored = [level.name for level in self.spec.levels if level.moments and level.name in features.maps]
        if self.learner is not None:  # with gradients the head finds them itself
            stored = []
        return Entry(
            index=pair[0],
            view=pair[1],
            info=self.coco.images[pair[0]],
            input_hw=(height, width),
            maps={name: maps[place] for name, maps in features.maps.items()},
            queries=features.queries[place],
            boxes=features.boxes[place],
            scores=features.scores[place],
            labels=features.labels[place],
            ground_truth=self.coco.ground_truth[pair[0]],
            moments={name: _moments(features.maps[name][place]) for name in stored},
        )


def _moments(one: Tensor) -> Moments:
    """Of a map "c h w", to the last bit what a cache would give back."""
    found = Moments.of(one.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    rows, columns = torch.triu_indices(len(found.mean), len(found.mean), device=found.mean.device)
    return Moments.unpacked(found.mean, found.covariance[rows, columns])


def _with_rows(outputs: Sequence[Decoded], rows: Sequence[int]) -> list[tuple[list[int], Decoded]]:
    """Each output with those of the rows that it holds; a detector may split a batch."""
    left = iter(rows)
    return [([next(left) for _ in range(len(output.boxes[-1]))], output) for output in outputs]


class _LiveStream:
    """See `Stream`. Threads read and resize images ahead; the detector computes when its batch is asked for."""

    def __init__(
        self, live: Live, pairs: Sequence[Pair], batch_size: int, seed: int, levels: Sequence[str] | None
    ) -> None:
        self._live, self._pairs, self._batch_size, self._seed = live, list(pairs), batch_size, seed
        self._levels = levels
        self._epoch = self._position = 0
        self.computing = 0.0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed, "pairs": len(self._pairs)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        for name, mine in (("pairs", len(self._pairs)), ("seed", self._seed)):
            if state[name] != mine:
                raise CacheError(
                    f"the run was saved with {name} {state[name]}, there are {mine} now",
                    "continue with the same images and views, or give another --run",
                )
        self._epoch, self._position = state["epoch"], state["position"]

    def seek(self, batches: int) -> None:
        self._epoch, batch = divmod(batches, -(-len(self._pairs) // self._batch_size))
        self._position = batch * self._batch_size

    def __iter__(self) -> Generator[Batch]:
        places = self._places()
        with ThreadPoolExecutor(2, "decode") as pool:
            ahead: deque[tuple[int, int, list[Pair], list[Future[Tensor]]]] = deque()
            try:
                while True:
                    while len(ahead) < 3:
                        epoch, end, pairs = next(places)
                        ahead.append((epoch, end, pairs, [pool.submit(self._live.read, pair) for pair in pairs]))
                    self._epoch, self._position, pairs, futures = ahead.popleft()
                    inputs = [future.result() for future in futures]
                    started = time.monotonic()
                    batch = self._live.compute(pairs, inputs, self._levels)
                    self.computing = time.monotonic() - started
                    yield batch
            finally:
                pool.shutdown(cancel_futures=True)

    def _places(self) -> Iterator[tuple[int, int, list[Pair]]]:
        """Batches from the position on, each with the epoch and the position after it."""
        epoch, start = self._epoch, self._position
        while True:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._pairs))  # as `Loader.order`
            for first in range(start, len(order), self._batch_size):
                chosen = order[first : first + self._batch_size]
                yield epoch, first + len(chosen), [self._pairs[i] for i in chosen]
            epoch, start = epoch + 1, 0
