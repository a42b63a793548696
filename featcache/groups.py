"""Encoded images on their way to the disk: those of one file are gathered, and files until a flush is worth it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

_MOST_OPEN = 4
"""Files that may be begun at a time."""
_LONGEST_WAIT = 2.0
"""Seconds after which a file is flushed however few bytes wait with it, when the next image comes."""

Key = tuple[str, int]
"""(view, number of the file of each of its levels)"""


@dataclass
class Group:
    """Images of one view that share their map files: encoded bands by level and index, row bytes by index."""

    view: str
    number: int
    chunks: dict[str, dict[int, list[bytes]]] = field(default_factory=dict[str, dict[int, list[bytes]]])
    rows: dict[int, dict[str, bytes]] = field(default_factory=dict[int, dict[str, bytes]])

    def add(self, index: int, chunks: Mapping[str, list[bytes]], rows: dict[str, bytes]) -> None:
        """Add an image."""
        for name, bands in chunks.items():
            self.chunks.setdefault(name, {})[index] = bands
        self.rows[index] = rows

    @property
    def map_bytes(self) -> int:
        """Of its maps."""
        return sum(len(band) for images in self.chunks.values() for bands in images.values() for band in bands)


class Groups:
    """Groups of up to `shard` of so many images, given out once `flush_bytes` of maps wait. Threads may share it.

    Flushing costs as much for a few hundred kilobytes as for some megabytes. No two groups given out together are of
    the same file.
    """

    def __init__(self, *, shard: int, images: int, flush_bytes: int) -> None:
        self._shard, self._images, self._flush_bytes = shard, images, flush_bytes
        self._lock = threading.Lock()
        self._open: dict[Key, Group] = {}
        self._waiting: dict[Key, Group] = {}
        self._since = 0.0

    def add(self, view: str, index: int, chunks: Mapping[str, list[bytes]], rows: dict[str, bytes]) -> list[Group]:
        """Add an image; the groups that are now to be written."""
        key = (view, index // self._shard)
        with self._lock:
            if key in self._waiting:  # begun, and put aside for others
                self._waiting[key].add(index, chunks, rows)
            else:
                self._open.setdefault(key, Group(*key)).add(index, chunks, rows)
                if len(self._open[key].rows) == min(self._shard, self._images - key[1] * self._shard):
                    self._wait(key)
                elif len(self._open) > _MOST_OPEN:  # images came in no order: write the oldest as far as it is
                    self._wait(next(iter(self._open)))
            return self._take() if self._is_time() else []

    def take(self) -> list[Group]:
        """All there are, whole or not."""
        with self._lock:
            for key in list(self._open):
                self._wait(key)
            return self._take()

    def _wait(self, key: Key) -> None:
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting[key] = self._open.pop(key)

    def _is_time(self) -> bool:
        if not self._waiting:
            return False
        many = sum(group.map_bytes for group in self._waiting.values()) >= self._flush_bytes
        return many or time.monotonic() - self._since >= _LONGEST_WAIT

    def _take(self) -> list[Group]:
        groups, self._waiting = list(self._waiting.values()), {}
        return groups
