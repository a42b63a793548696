"""What a cache says of itself, read from its JSON and its flags alone: without torch, zarr or an array of maps.

So `info` answers at once, which asks for nothing that imports NumPy. `Cache` reads images.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from featcache.errors import CacheError, DamagedError, no_cache_at, unfinished_cache
from featcache.source import Source, open_source
from featcache.spec import CacheSpec, check_format_version
from featcache.tables import required_files
from featcache.truth import group_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_OURS = "featcache"
_OF_AN_ARRAY = {"shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs", "attributes"}


@dataclass(frozen=True)
class Header:
    """The identity of a cache, and the lengths of its tables."""

    path: str
    spec: CacheSpec
    shard: int
    images: int
    annotations: int
    source: Source

    def further_truth(self) -> dict[str, int]:
        """Rows of each ground truth that there is beside the annotations, by name."""
        return {name: int(self.array(f"{group_of(name)}/id")["shape"][0]) for name in self.spec.further_truth}

    def flags(self, view: str) -> bytes:
        """One byte per image, 1 where that view of it is extracted, else 0."""
        flags = self._bytes(view, "done", 1, self.images)
        if flags is None:  # rewritten by another program, in chunks that only zarr reads
            from featcache.reader import Cache

            return Cache(self.path).done(view).tobytes()
        return flags

    def done(self, view: str) -> NDArray[np.bool_]:
        """Which images of a view are extracted."""
        import numpy as np

        return np.frombuffer(self.flags(view), bool)

    def cells(self, view: str) -> list[int] | None:
        """Cells of the maps of all extracted images together, level by level. None as in `rows`."""
        data = self._bytes(view, "level_hw", 4, self.images)
        if data is None:
            return None
        levels = len(self.spec.levels)
        sizes = Counter(struct.iter_unpack(f"{8 * levels}s", data))  # of as many images, few differ
        unpacked = [(struct.unpack(f"<{2 * levels}i", row), images) for (row,), images in sizes.items()]
        return [
            sum(images * sides[2 * level] * sides[2 * level + 1] for sides, images in unpacked)
            for level in range(levels)
        ]

    def delta(self, view: str, level: str) -> bool | None:
        """Whether a level of a view is stored as row differences; None before its first images."""
        return self.array(f"views/{view}/maps/{level}")["attributes"].get(_OURS, {}).get("delta")

    def rows(self, view: str, name: str, dtype: str, count: int | None = None) -> NDArray[Any] | None:
        """A small array with one row per image, or the first `count` of them.

        None where its bytes do not lie on disk as they are in memory.
        """
        import numpy as np

        count = self.images if count is None else count
        data = self._bytes(view, name, np.dtype(dtype).itemsize, count)
        if data is None:
            return None
        return np.frombuffer(data, dtype).reshape(count, *self.array(f"views/{view}/{name}")["shape"][1:])

    def _bytes(self, view: str, name: str, itemsize: int, count: int) -> bytes | None:
        """Of `rows`."""
        path = f"views/{view}/{name}"
        array = self.array(path)
        if _codecs(array) != ["bytes"]:
            return None
        rows, row = array["chunk_grid"]["configuration"]["chunk_shape"][0], array["shape"][1:]
        width = math.prod(row) * itemsize
        parts = list[bytes]()
        for chunk in range(-(-count // rows)):
            data = b""  # no file: nothing was written there yet
            with suppress(FileNotFoundError):
                data = self.source.read(f"{path}/c.{chunk}" + ".0" * len(row))
            parts.append(data.ljust(rows * width, b"\0"))
        return b"".join(parts)[: count * width]

    def column(self, path: str) -> NDArray[Any]:
        """A whole array of one axis out of the tables of images and annotations; raises DamagedError."""
        array = self.array(path)
        if _codecs(array) != ["bytes", "zstd", "crc32c"]:  # rewritten by another program
            from featcache import store

            return store.read_array(store.open_group(self.path), path)
        import numpy as np

        from featcache.chunks import decode_chunk

        (length,), (step,) = array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]
        values = np.zeros(-(-length // step) * step, array["data_type"])
        required = required_files(path, array, array["attributes"].get(_OURS, {}), self.spec)
        for chunk in range(len(values) // step):
            key = f"{path}/c.{chunk}"
            try:
                decode_chunk(self.source.read(key), values[chunk * step : (chunk + 1) * step], compress=True)
            except FileNotFoundError as error:
                if key in required:  # else all zeros
                    raise self._damaged(path, f"{key} is missing") from error
            except DamagedError as error:
                raise self._damaged(path, error.what) from error
        return values[:length]

    def _damaged(self, path: str, what: str) -> DamagedError:
        return DamagedError(what, f"table {path} of cache {self.path}", f"featcache verify {self.path}")

    def array(self, path: str) -> dict[str, Any]:
        """Zarr's description of an array; raises CacheError."""
        return _document(self.source, path)


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a cache; raises NotACacheError and FormatVersionError."""
    source = open_source(path)
    header = cast("dict[str, Any] | None", _document(source).get("attributes", {}).get(_OURS))
    if header is None:
        raise unfinished_cache(path)
    check_format_version(header["format_version"], str(path))
    images, annotations = (int(_document(source, f"{name}/id")["shape"][0]) for name in ("images", "ground_truth"))
    return Header(str(path), CacheSpec.from_json(header["spec"]), int(header["shard"]), images, annotations, source)


def _codecs(array: dict[str, Any]) -> list[str]:
    return [codec["name"] for codec in array["codecs"]]


def _document(source: Source, path: str = "") -> dict[str, Any]:
    key = f"{path}/zarr.json" if path else "zarr.json"
    try:
        found = json.loads(source.read(key))
    except (FileNotFoundError, NotADirectoryError) as error:
        if path:
            raise CacheError(f"{source.name}/{key} is missing", f"featcache verify {source.name}") from error
        raise no_cache_at(source.name) from error
    except ValueError as error:
        raise _damaged(source, key, "it is no JSON") from error
    if not isinstance(found, dict) or (path and not found.keys() >= _OF_AN_ARRAY):
        raise _damaged(source, key, "it describes no array" if path else "it describes no group")
    return cast("dict[str, Any]", found)


def _damaged(source: Source, key: str, what: str) -> CacheError:
    hint = f"featcache verify {source.name}" if "/" in key else "extract the cache again"
    return CacheError(f"{source.name}/{key} is damaged: {what}", hint)
