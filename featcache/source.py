"""Bytes of a cache by key, from a directory or any fsspec URL (`s3://`, `memory://`), for the direct read path."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from featcache.errors import CacheError


class Source(Protocol):
    """Where the files of a cache are; `name` is what messages call it."""

    name: str
    bytes_read: int
    """So far, for progress: threads that read at the same time may lose some of the count."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes [start, start + length) of a file, to its end for None; negative start counts from the end.

        Raises FileNotFoundError where there is none.
        """
        ...

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
        """`read` of many (key, start, length) at a time; None where there is no such file."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        ...


class LocalSource:
    """Files under a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)
        self.bytes_read = 0
        self._prefix = f"{root}/"

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Source.read`."""
        path = self._prefix + key
        file = os.open(path, os.O_RDONLY)
        try:
            if start < 0 or length is None:
                size = os.fstat(file).st_size
                start = max(0, size + start) if start < 0 else start
                length = size - start if length is None else length
            data = os.pread(file, length, start)
            self.bytes_read += len(data)
            return data
        except OSError as error:
            error.filename = path  # which is not told of a file that is open
            raise
        finally:
            os.close(file)

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
        """See `Source.read_ranges`."""
        return [self._read_if_there(*place) for place in ranges]

    def _read_if_there(self, key: str, start: int, length: int) -> bytes | None:
        try:
            return self.read(key, start, length)
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        """See `Source.exists`."""
        return os.path.isfile(self._prefix + key)


class RemoteSource:
    """Files under an fsspec URL."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec  # pyright: ignore[reportMissingTypeStubs]

            fs, root = cast(Any, fsspec).url_to_fs(url)
        except (ImportError, ValueError) as error:  # ValueError: no such protocol
            raise CacheError(
                f"{url} cannot be opened: {error}",
                "pip install 'featcache[remote]', and s3fs for s3:// or gcsfs for gs://",
            ) from error
        self._fs: Any = fs
        self._root = str(root).rstrip("/")
        self.name = url
        self.bytes_read = 0

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Source.read`; raises CacheError where the file system cannot be asked."""
        path = f"{self._root}/{key}"
        try:
            if start < 0:
                start = max(0, int(self._fs.size(path)) + start)
            # No range for a whole file: an object store answers any range of an empty one with an error.
            data = self._fs.cat_file(path, start=start or None, end=None if length is None else start + length)
        except Exception as error:
            return self._instead_of(error, key)
        self.bytes_read += len(data)
        return data

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
        """See `Source.read_ranges`; one round trip where the file system can have many requests under way."""
        paths = [f"{self._root}/{key}" for key, _, _ in ranges]
        starts, ends = [start for _, start, _ in ranges], [start + length for _, start, length in ranges]
        found: list[Any] = self._fs.cat_ranges(paths, starts, ends, on_error="return")
        answers: list[bytes | None] = []
        for item, (key, _, _) in zip(found, ranges, strict=True):
            if isinstance(item, FileNotFoundError):
                answers.append(None)
            else:
                answers.append(self._instead_of(item, key) if isinstance(item, Exception) else item)
                self.bytes_read += len(answers[-1] or b"")
        return answers

    def _instead_of(self, error: Exception, key: str) -> bytes:
        """What an error of the file system means: no bytes behind the end of a file, or an error for people."""
        if isinstance(error, FileNotFoundError):
            raise error
        if isinstance(error, OSError) and error.errno == errno.EINVAL:
            return b""  # how s3fs words HTTP status 416, "range not satisfiable"; a directory gives no bytes either
        raise unreachable(f"{self.name}/{key}", error) from error

    def exists(self, key: str) -> bool:
        """See `Source.exists`."""
        return self._fs.exists(f"{self._root}/{key}")


def unreachable(url: str, error: Exception) -> CacheError:
    """What to raise where a remote file system cannot be asked."""
    return CacheError(f"{url} cannot be read: {error}", "check the address, the credentials and the network")


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is an fsspec URL rather than a path."""
    return "://" in str(place)


def local_directory(place: str | os.PathLike[str]) -> Path:
    """The place as a path; raises CacheError for a URL, which `Path` would take for a directory of that name."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", str(place)):
        raise CacheError(
            f"{place} is a URL: a cache is read from there, but not written or measured",
            "use a directory; featcache copy URL DIRECTORY brings a cache here",
        )
    return Path(place)


def open_source(place: str | os.PathLike[str]) -> Source:
    """The source of a path or URL."""
    return RemoteSource(str(place)) if is_url(place) else LocalSource(Path(place))
