"""Rows of the small per-image arrays, read and written in place: row i of a file of equal rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.files import write_at
from featcache.layout import RowFiles
from featcache.source import Source


def write_row(root: Path, files: RowFiles, index: int, data: bytes) -> Path:
    """Write one row, not flushed; returns the file to flush."""
    key, offset = files.place(index)
    write_at(root / key, offset, data, files.chunk_rows * files.row_bytes)
    return root / key


def read_row(source: Source, files: RowFiles, index: int) -> bytes:
    """One row as stored; zeros where nothing was written yet."""
    key, offset = files.place(index)
    try:
        return source.read(key, offset, files.row_bytes)
    except FileNotFoundError:
        return bytes(files.row_bytes)


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
