"""The order of writing that gives a done flag its meaning: map files, rows, flags, each flushed before the next."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.chunks import encode_bands, pack_shard, unpack_shard
from featcache.errors import DamagedError
from featcache.files import replace_files, sync
from featcache.groups import Group
from featcache.layout import MapFiles, RowFiles, ViewFiles
from featcache.record import Record, rows_checksum
from featcache.rows import read_all, write_rows
from featcache.source import LocalSource


class Committer:
    """Encodes records and puts groups of them on disk. Several threads may call `encode` and `commit`."""

    def __init__(self, root: Path, views: Mapping[str, ViewFiles], images: int, shard: int) -> None:
        self._root = root
        self._views = views
        self._images = images
        self._shard = shard
        self._source = LocalSource(root)
        self._shard_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self.bytes_written = 0
        # A killed writer may have made a row file whose name is not on disk yet.
        sync(
            {
                root / rows.path
                for arrays in views.values()
                for rows in (*arrays.rows.values(), arrays.checksum, arrays.done)
            }
        )

    def done(self, view: str) -> NDArray[np.bool_]:
        """Which images of a view are flagged done."""
        return read_all(self._source, self._views[view].done, self._images).astype(bool)

    def encode(self, record: Record) -> tuple[dict[str, list[bytes]], dict[str, bytes]]:
        """Stored bytes of a record: bands by level, row by name."""
        arrays = self._views[record.view]
        chunks = {
            name: encode_bands(record.tokens[name], files.level, compress=files.compress)
            for name, files in arrays.maps.items()
        }
        rows = {
            name: np.ascontiguousarray(record.rows[name], files.array.dtype).tobytes()
            for name, files in arrays.rows.items()
        }
        return chunks, rows

    def commit(self, groups: Sequence[Group]) -> None:
        """Put whole groups on disk and flag their images done. A shard keeps the done images that it already holds."""
        if not groups:
            return
        if self._shard == 1:
            self._commit(groups)
        else:
            with self._shard_lock:  # two commits of one shard at a time would lose images of one of them
                self._commit(groups)

    def _commit(self, groups: Sequence[Group]) -> None:
        files = [file for group in groups for file in self._map_files(group)]
        replace_files(files)
        write_rows(
            self._root,
            (
                (rows, index, data)
                for group in groups
                for index, values in group.rows.items()
                for rows, data in self._row_data(group.view, values)
            ),
        )
        write_rows(
            self._root, ((self._views[group.view].done, index, b"\1") for group in groups for index in group.rows)
        )
        with self._count_lock:
            self.bytes_written += sum(len(data) for _, data in files)

    def _map_files(self, group: Group) -> list[tuple[Path, bytes]]:
        arrays = self._views[group.view]
        if self._shard == 1:
            return [
                (self._root / files.key(index), bands[0] if len(bands) == 1 else _packed(files, {0: bands}))
                for name, files in arrays.maps.items()
                for index, bands in group.chunks[name].items()
            ]
        first = group.number * self._shard
        done = self.done(group.view)[first : first + self._shard]
        return [
            (self._root / files.key(group.number), self._merged_shard(files, group, group.chunks[name], first, done))
            for name, files in arrays.maps.items()
        ]

    def _merged_shard(
        self, files: MapFiles, group: Group, chunks: Mapping[int, list[bytes]], first: int, done: NDArray[np.bool_]
    ) -> bytes:
        bands = files.level.bands
        places = {index - first: image for index, image in chunks.items()}
        kept = [place for place in np.flatnonzero(done).tolist() if place not in places]
        if kept:
            key = files.key(group.number)
            try:
                old = unpack_shard(self._source.read(key), files.places)
                places |= {place: [old[place * bands + band] for band in range(bands)] for place in kept}
            except (DamagedError, FileNotFoundError, KeyError) as error:
                raise DamagedError(
                    "is damaged and holds images marked done",
                    f"shard {key} of cache {self._root}",
                    f"featcache verify {self._root} --deep",
                ) from error
        return _packed(files, places)

    def _row_data(self, view: str, values: Mapping[str, bytes]) -> list[tuple[RowFiles, bytes]]:
        arrays = self._views[view]
        checksum = rows_checksum(values).to_bytes(arrays.checksum.row_bytes, "little")
        return [*((arrays.rows[name], data) for name, data in values.items()), (arrays.checksum, checksum)]


def _packed(files: MapFiles, images: Mapping[int, Sequence[bytes]]) -> bytes:
    """The file of some images, each given by its place in the shard with its bands."""
    chunks = {
        place * files.level.bands + band: chunk for place, bands in images.items() for band, chunk in enumerate(bands)
    }
    return pack_shard(chunks, files.places)
