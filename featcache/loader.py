"""`Loader`: batches of entries ahead of the training step. Threads read stored values into a ring of reused buffers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.codecs import STORED_DTYPE
from featcache.entry import Entry, Wanted
from featcache.errors import CacheError, NotDoneError
from featcache.reader import Cache
from featcache.record import Record

Pair = tuple[int, str]
"""(index, view)"""


@dataclass
class _Slot:
    """Buffers for one batch: "batch tokens channels" by level, pinned where the device is a GPU."""

    tensors: dict[str, torch.Tensor]
    arrays: dict[str, NDArray[Any]] = field(init=False)
    copied: torch.cuda.Event | None = None  # set when the GPU has taken the last batch out of the buffers

    def __post_init__(self) -> None:
        self.arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}


class Loader:
    """Iterating gives lists of `batch_size` entries, decoded on `device`; one pass gives every (index, view) pair once.

    The order is a permutation by (seed, epoch); the epoch grows by one with each pass. `state_dict` after a batch and
    `load_state_dict` before a pass continue with the batch that would have come next. Only done images are given;
    an image asked for in `indices` that is not done raises NotDoneError.

    levels: those that are read, none of them too; None for all.
    wanted: of levels in bands, read only those that hold these rows (`Cache.read`); it is called in the threads.
    """

    def __init__(
        self,
        cache: Cache,
        batch_size: int,
        *,
        views: Sequence[str] | None = None,
        indices: Sequence[int] | None = None,
        levels: Sequence[str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
        threads: int = 2,
        depth: int = 2,
        drop_last: bool = False,
        wanted: Wanted | None = None,
    ) -> None:
        if min(batch_size, threads, depth) < 1:
            raise CacheError("batch_size, threads and depth must be at least 1")
        self.cache = cache
        self.batch_size = batch_size
        self.levels = [cache.spec.level(name).name for name in (cache.spec.level_names if levels is None else levels)]
        self.shuffle = shuffle
        self.seed = seed
        self.device = torch.device(device)
        self.epoch = 0
        self.position = 0  # pairs of this epoch already given
        self.pairs = _done_pairs(cache, views or cache.views, indices)
        self._drop_last = drop_last
        self._wanted = wanted
        self._threads = threads
        self._depth = depth

    def __len__(self) -> int:
        """Batches in one pass from its start."""
        whole, rest = divmod(len(self.pairs), self.batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def order(self, epoch: int) -> list[Pair]:
        """The pairs in the order of an epoch."""
        if not self.shuffle:
            return self.pairs
        return [self.pairs[i] for i in np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))]

    def state_dict(self) -> dict[str, int]:
        """Where the pass stands, batches already given counted as used."""
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "pairs": len(self.pairs)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state_dict`; raises CacheError where the images or the seed are not those of the state."""
        for name, mine in (("pairs", len(self.pairs)), ("seed", self.seed)):
            if state[name] != mine:
                raise CacheError(f"loader state was saved with {name} {state[name]}, this loader has {mine}")
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[list[Entry]]:
        batches = self._batches()
        ahead: deque[tuple[list[Pair], _Slot, list[Future[Any]]]] = deque()
        free = [self._new_slot() for _ in range(min(self._depth + 1, max(1, len(batches))))]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="featcache-loader") as pool:
            try:
                for batch in batches[: len(free)]:
                    ahead.append(self._start(pool, batch, free.pop()))
                waiting = deque(batches[len(ahead) :])
                while ahead:
                    batch, slot, futures = ahead.popleft()
                    entries = [self._finish(future.result()) for future in futures]
                    if self.device.type == "cuda":
                        slot.copied = torch.cuda.Event()
                        slot.copied.record(torch.cuda.current_stream(self.device))
                    if waiting:
                        ahead.append(self._start(pool, waiting.popleft(), slot))
                    self.position += len(batch)
                    yield entries
            finally:
                for _, _, futures in ahead:
                    for future in futures:
                        future.cancel()
                if self.device.type == "cuda":  # torch lends freed buffers again, whatever is still copied from them
                    torch.cuda.synchronize(self.device)
        self.epoch, self.position = self.epoch + 1, 0

    def _batches(self) -> list[list[Pair]]:
        order = self.order(self.epoch)
        starts = range(self.position, len(order), self.batch_size)
        batches = [order[start : start + self.batch_size] for start in starts]
        if self._drop_last and batches and len(batches[-1]) < self.batch_size:
            batches.pop()
        return batches

    def _new_slot(self) -> _Slot:
        tensors: dict[str, torch.Tensor] = {}
        for name in self.levels:
            level = self.cache.spec.level(name)
            shape = (self.batch_size, level.tokens, level.channels)
            dtype = getattr(torch, STORED_DTYPE[self.cache.spec.codec])
            tensors[name] = torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")
        return _Slot(tensors)

    def _start(
        self, pool: ThreadPoolExecutor, batch: list[Pair], slot: _Slot
    ) -> tuple[list[Pair], _Slot, list[Future[Any]]]:
        return batch, slot, [pool.submit(self._read, pair, slot, place) for place, pair in enumerate(batch)]

    def _read(self, pair: Pair, slot: _Slot, place: int) -> Record | Entry:
        """Body of a task: read into the buffers; decode here too where the device is this CPU."""
        if slot.copied is not None:
            slot.copied.synchronize()
        buffers = {name: array[place] for name, array in slot.arrays.items()}
        record = self.cache.read(*pair, self.levels, buffers, self._wanted)
        return record if self.device.type == "cuda" else self.cache.decode(record, self.device)

    def _finish(self, item: Record | Entry) -> Entry:
        return self.cache.decode(item, self.device) if isinstance(item, Record) else item


def _done_pairs(cache: Cache, views: Sequence[str], indices: Sequence[int] | None) -> list[Pair]:
    done = {view: cache.done(view) for view in views}
    if indices is None:
        return [(index, view) for index in range(len(cache)) for view in views if done[view][index]]
    pairs = [(index, view) for index in indices for view in views]
    for index, view in pairs:
        if not done[view][index]:
            raise NotDoneError(
                f"image {cache.images[index].id}, view {view} of cache {cache.path} is not extracted yet",
                "run the extraction again, it continues",
            )
    return pairs
