"""Names and shapes of the arrays of a cache: the one place that both the writer and the reader take them from.

A view is a group `views/VIEW`. Its maps are `maps/LEVEL`, one encoded chunk per image, `shard` images in a file.
Everything small is a row array: row i belongs to image i, stored as it is in memory, written and read in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from featcache.moments import packed_size
from featcache.spec import STORED_DTYPE, CacheSpec, LevelSpec

ROW_CHUNK_BYTES = 8 << 20
"""Aimed size of one file of a row array: few files at COCO size, one cheap request from an object store."""

DONE = "done"
CHECKSUM = "checksum"
ATTRIBUTE = "featcache"
"""The one attribute of the root group and of each map array under which everything of ours stands."""


@dataclass(frozen=True)
class RowArray:
    """A small array with one row per image."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # of one row

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def chunk_rows(self, images: int) -> int:
        """Rows in one file, so that all files of this array are about equal."""
        files = math.ceil(images * self.row_bytes / ROW_CHUNK_BYTES) or 1  # none where rows have no bytes
        return math.ceil(images / files)


def view_path(view: str) -> str:
    """Group of a view."""
    return f"views/{view}"


def map_path(view: str, level: str) -> str:
    """Array of one level of a view."""
    return f"{view_path(view)}/maps/{level}"


def row_arrays(spec: CacheSpec) -> dict[str, RowArray]:
    """Row arrays of a view by name, without the done flag and the checksum."""
    n = spec.detections
    arrays = [
        RowArray("boxes", "<f4", (n, 4)),
        RowArray("scores", "<f4", (n,)),
        RowArray("labels", "<i4", (n,)),
        RowArray("queries", "<f4", (n, spec.query_dim)),
        RowArray("count", "<i4", ()),
        RowArray("input_hw", "<i4", (2,)),
        RowArray("level_hw", "<i4", (len(spec.levels), 2)),
    ]
    if spec.codec == "uint8":
        for level in spec.levels:
            arrays += [RowArray(f"{what}/{level.name}", "<f4", (level.channels,)) for what in ("scale", "offset")]
    for level in spec.levels:
        if level.moments:
            arrays.append(RowArray(f"mean/{level.name}", "<f4", (level.channels,)))
            arrays.append(RowArray(f"covariance/{level.name}", "<f4", (packed_size(level.channels),)))
    return {array.name: array for array in arrays}


@dataclass(frozen=True)
class RowFiles:
    """Where a row array lies: `chunk_rows` rows in a file. `direct` is False where only zarr-python can read them."""

    array: RowArray
    path: str
    chunk_rows: int
    direct: bool = True

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.array.row_bytes

    def place(self, index: int) -> tuple[str, int]:
        """File and offset of one row."""
        chunk, row = divmod(index, self.chunk_rows)
        return self.key(chunk), row * self.row_bytes

    def key(self, chunk: int) -> str:
        """File of one chunk."""
        return f"{self.path}/c.{chunk}" + ".0" * len(self.array.shape)


MOST_FILES = 100_000
"""Files of maps in a cache, beyond which directories and backups become a burden."""


SMALL_FILE_BYTES = 1 << 20
"""Maps below this size share files: creating and flushing a file costs more than filling it."""
SHARED_BY_SMALL = 8
"""Images per file of such maps; those of files not yet full are extracted again after a kill."""


def images_per_file(spec: CacheSpec, images: int) -> int:
    """Images per map file of a cache of so many images: 1 where maps are large, 8 where they are small.

    More where it takes more to stay below MOST_FILES map files.
    """
    chunks = images * len(spec.levels) * len(spec.views)
    largest = max(level.tokens * level.channels for level in spec.levels) * np.dtype(STORED_DTYPE[spec.codec]).itemsize
    return max(SHARED_BY_SMALL if largest < SMALL_FILE_BYTES else 1, math.ceil(chunks / (0.9 * MOST_FILES)))


@dataclass(frozen=True)
class MapFiles:
    """Where a map array lies: `shard` images in a file, each in `level.bands` chunks. `delta` is None at first."""

    level: LevelSpec
    path: str
    shard: int
    compress: bool
    delta: bool | None
    direct: bool = True

    @property
    def places(self) -> int:
        """Chunks in a file. More than one are packed, with an index behind them."""
        return self.shard * self.level.bands

    def key(self, shard: int) -> str:
        """File of so many images."""
        return f"{self.path}/c.{shard}.0.0"


@dataclass(frozen=True)
class ViewFiles:
    """All arrays of one view."""

    rows: dict[str, RowFiles]  # in the order of `row_arrays`
    checksum: RowFiles
    done: RowFiles
    maps: dict[str, MapFiles]  # in the order of the levels


DONE_ROW = RowArray(DONE, "|u1", ())
CHECKSUM_ROW = RowArray(CHECKSUM, "<u4", ())
"""CRC-32C of all other rows of that image, in the order of `row_arrays`."""
