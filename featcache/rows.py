"""Rows of the small per-image arrays, read and written in place: row i of a file of equal rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.files import sync, write_at
from featcache.layout import RowFiles
from featcache.source import Source


def write_rows(root: Path, rows: Iterable[tuple[RowFiles, int, bytes]]) -> None:
    """Write rows, each given with its array and index; on disk when this returns."""
    parts: dict[tuple[str, int], dict[int, bytes]] = {}
    for files, index, data in rows:
        if not data:  # a cache without detections
            continue
        key, offset = files.place(index)
        parts.setdefault((key, files.chunk_rows * files.row_bytes), {})[offset] = data
    changed: set[Path] = set()
    for (key, size), data in parts.items():
        path = root / key
        if write_at(path, data, size):
            changed.add(path.parent)  # a new file needs its name on disk too
        changed.add(path)
    sync(changed)


def read_row_of_each(source: Source, arrays: Sequence[RowFiles], index: int) -> list[bytes]:
    """Row `index` of several arrays as stored; zeros where nothing was written yet."""
    found = source.read_ranges([(*files.place(index), files.row_bytes) for files in arrays])
    return [bytes(files.row_bytes) if data is None else data for files, data in zip(arrays, found, strict=True)]


def read_all(source: Source, files: RowFiles, images: int) -> NDArray[Any]:
    """All rows of an array, "images ..."."""
    size = files.chunk_rows * files.row_bytes
    parts: list[bytes] = []
    for chunk in range(-(-images // files.chunk_rows)):
        try:
            parts.append(source.read(files.key(chunk)).ljust(size, b"\0"))
        except FileNotFoundError:
            parts.append(bytes(size))
    values = np.frombuffer(b"".join(parts), files.array.dtype)
    return values.reshape(-1, *files.array.shape)[:images]
