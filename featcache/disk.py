"""Bytes on disk as `du` counts them, and bytes as people read them; imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
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
    """When each file of chunks of an array was last written, in seconds since 1970; empty unless asked for."""


def usage_by_directory(root: Path, *, times: bool = False) -> dict[str, Usage]:
    """`Usage` of a directory and of each below it, by its path relative to `root`, which is ".".

    times: whether to fill `chunks`. Files that a writer removes meanwhile do not count.
    """
    found = {".": Usage(root.stat().st_blocks * _BLOCK)}
    waiting = ["."]
    while waiting:
        name = waiting.pop()
        with suppress(FileNotFoundError), _opened(root / name) as folder, os.scandir(folder) as entries:
            prefix, usage = "" if name == "." else f"{name}/", found[name]
            for below, bytes_of_it in _count(entries, usage, times=times):
                found[prefix + below] = Usage(bytes_of_it)
                waiting.append(prefix + below)
    return found


@contextmanager
def _opened(folder: Path) -> Generator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _count(entries: Iterable[os.DirEntry[str]], usage: Usage, *, times: bool) -> list[tuple[str, int]]:
    """Add the files of one directory to its usage; the directories in it, with their own bytes.

    COCO's cache has 89,000 files: what is done for each here decides how long `info` takes. `entries` are those of an
    open directory, so that the kernel does not walk the whole path for each of them.
    """
    folders: list[tuple[str, int]] = []
    blocks = files = 0
    for entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if entry.is_dir(follow_symlinks=False):
            folders.append((entry.name, status.st_blocks * _BLOCK))
            continue
        blocks += status.st_blocks
        files += 1
        if times and entry.name.startswith("c."):
            usage.chunks.append(status.st_mtime)
    usage.bytes += blocks * _BLOCK
    usage.files += files
    return folders


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
