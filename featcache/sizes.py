"""Bytes: how many a cache takes, how many are free, how people read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def human_bytes(count: float) -> str:
    """Bytes for people: 14.6 MB (decimal units)."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def disk_usage(path: Path) -> tuple[int, int]:
    """Bytes on disk as `du` counts them, and number of files, of everything under a directory and itself."""
    total, files = path.stat().st_blocks * 512, 0
    for entry in _walk(path):
        total += entry.stat(follow_symlinks=False).st_blocks * 512
        files += entry.is_file(follow_symlinks=False)
    return total, files


def _walk(path: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
