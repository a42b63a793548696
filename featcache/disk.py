"""Bytes on disk as `du` counts them, and bytes as people read them; imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_BLOCK = 512


def human_bytes(count: float) -> str:
    """Bytes for people: 14.6 MB (decimal units)."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


@dataclass
class Usage:
    """What the files directly in one directory take, the directory itself included."""

    bytes: int
    files: int = 0
    chunks: list[float] = field(default_factory=list[float])
    """When each file of chunks of an array was last written, in seconds since 1970."""


def usage_by_directory(root: Path) -> dict[str, Usage]:
    """`Usage` of a directory and of each below it, by its path relative to `root`, which is ".".

    Files that a writer removes meanwhile do not count.
    """
    found = {".": Usage(root.stat().st_blocks * _BLOCK)}
    waiting = [(str(root), ".")]
    while waiting:
        folder, name = waiting.pop()
        usage, prefix = found[name], "" if name == "." else f"{name}/"
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        found[prefix + entry.name] = Usage(status.st_blocks * _BLOCK)
                        waiting.append((entry.path, prefix + entry.name))
                    else:
                        usage.bytes += status.st_blocks * _BLOCK
                        usage.files += 1
                        if entry.name.startswith("c."):
                            usage.chunks.append(status.st_mtime)
    return found


def disk_usage(path: Path) -> tuple[int, int]:
    """Bytes on disk, and number of files, of everything under a directory and itself."""
    found = usage_by_directory(path).values()
    return sum(usage.bytes for usage in found), sum(usage.files for usage in found)


def walk(path: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    """Every file and directory below a directory."""
    with os.scandir(path) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)
