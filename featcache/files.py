"""Durable steps on local files: replace one whole, write a row in place, flush; and what a full disk says."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path

from featcache.errors import CacheError, DiskFullError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TEMPORARY_SUFFIX = ".tmp"
PARTIAL_SUFFIXES = (TEMPORARY_SUFFIX, ".partial")
"""Files that a killed process may leave behind; the second is zarr's."""


def replace_file(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, or leave it as it was; on disk when this returns."""
    replace_files([(path, data)])


def replace_files(files: Iterable[tuple[Path, bytes]]) -> None:
    """`replace_file` for many files, flushed together; raises CacheError where a directory has the name of one."""
    written: list[tuple[Path, Path]] = []
    try:
        for path, data in files:
            temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
            written.append((temporary, path))
            temporary.write_bytes(data)
        sync(temporary for temporary, _ in written)
        for temporary, path in written:
            temporary.replace(path)
    except OSError as error:
        for temporary, _ in written:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):
            raise _in_the_way(Path(error.filename2 or error.filename)) from error
        raise
    sync({path.parent for _, path in written})


def _in_the_way(directory: Path) -> CacheError:
    """What to raise where a file belongs and a directory is. What is in it is not ours to remove."""
    return CacheError(
        f"{directory} is a directory, and a file of the cache belongs there",
        f"look what is in it, remove it, and run the same command again:  {shlex.join(['rm', '-r', str(directory)])}",
    )


def write_at(path: Path, parts: Mapping[int, bytes], size: int) -> bool:
    """Write bytes at offsets of a file of `size` bytes, all zeros if new; not flushed. Returns whether it was new.

    Raises CacheError where a directory has its name.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except IsADirectoryError as error:
        raise _in_the_way(path) from error
    try:
        is_new = os.fstat(file).st_size < size
        if is_new:
            os.ftruncate(file, size)
        for offset, data in _joined(parts):
            while data:
                count = os.pwrite(file, data, offset)
                data, offset = data[count:], offset + count
        return is_new
    finally:
        os.close(file)


def _joined(parts: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Parts that lie one behind the other as one."""
    run: list[bytes] = []
    first = end = 0
    for offset in sorted(parts):
        if run and offset != end:
            yield first, b"".join(run)
            run = []
        if not run:
            first = offset
        run.append(parts[offset])
        end = offset + len(parts[offset])
    if run:
        yield first, b"".join(run)


def sync(paths: Iterable[Path]) -> None:
    """Flush files or directories to the disk."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def clear_directory(directory: Path, *, keep: str) -> None:
    """Remove everything in a directory but the entry named `keep`."""
    for entry in directory.iterdir():
        if entry.name == keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextlib.contextmanager
def full_disk_is_clear(place: object) -> Generator[None]:
    """Turn the system's "no space" errors into DiskFullError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(
            f"no space left to write {place} ({os.strerror(error.errno)})",
            "every image marked done is safe; free some space and run the same command again, it continues",
        ) from error
