"""Bytes of a cache by key, from a directory or any fsspec URL (`s3://`, `memory://`), for the direct read path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol, cast

from featcache.errors import CacheError


class Source(Protocol):
    """Where the files of a cache are; `name` is what messages call it."""

    name: str

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes [start, start + length) of a file, to its end for None; negative start counts from the end.

        Raises FileNotFoundError where there is none.
        """
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        ...


class LocalSource:
    """Files under a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)
        self._prefix = f"{root}/"

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Source.read`."""
        file = os.open(self._prefix + key, os.O_RDONLY)
        try:
            if start < 0 or length is None:
                size = os.fstat(file).st_size
                start = max(0, size + start) if start < 0 else start
                length = size - start if length is None else length
            return os.pread(file, length, start)
        finally:
            os.close(file)

    def exists(self, key: str) -> bool:
        """See `Source.exists`."""
        return os.path.exists(self._prefix + key)


class RemoteSource:
    """Files under an fsspec URL."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise CacheError(f"reading {url} needs fsspec", "pip install 'featcache[remote]'") from error
        fs, root = cast(Any, fsspec).url_to_fs(url)
        self._fs: Any = fs
        self._root = str(root).rstrip("/")
        self.name = url

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Source.read`."""
        path = f"{self._root}/{key}"
        if start < 0:
            start = max(0, int(self._fs.size(path)) + start)
        return self._fs.cat_file(path, start=start, end=None if length is None else start + length)

    def exists(self, key: str) -> bool:
        """See `Source.exists`."""
        return self._fs.exists(f"{self._root}/{key}")


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is an fsspec URL rather than a path."""
    return "://" in str(place)


def open_source(place: str | os.PathLike[str]) -> Source:
    """The source of a path or URL."""
    return RemoteSource(str(place)) if is_url(place) else LocalSource(Path(place))
