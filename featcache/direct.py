"""The direct read path: file bytes -> checksum -> zstd -> the caller's buffer, without zarr between them.

It knows exactly the codec chains that this release writes (`store.open_view` says which arrays have them); everything
else goes through zarr-python.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from featcache.chunks import decode_chunk, index_bytes, read_index
from featcache.errors import DamagedError
from featcache.layout import MapFiles
from featcache.source import Source


def read_map(source: Source, files: MapFiles, index: int, out: NDArray[Any]) -> None:
    """Read the tokens of image `index` into `out`, "tokens channels"; raises DamagedError."""
    data = read_chunk(source, files, index)
    decode_chunk(data, out, compress=files.compress)


def read_chunk(source: Source, files: MapFiles, index: int) -> bytes:
    """Stored bytes of the chunk of image `index`; raises DamagedError where they are missing."""
    shard, place = divmod(index, files.shard)
    key = files.key(shard)
    try:
        if files.shard == 1:
            return source.read(key)
        span = read_index(source.read(key, -index_bytes(files.shard)))[place]
        if span is None:
            raise DamagedError(f"{key} does not hold it")
        return source.read(key, *span)
    except FileNotFoundError as error:
        raise DamagedError(f"{key} is missing") from error
