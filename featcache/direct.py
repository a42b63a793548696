"""The direct read path: file bytes -> checksum -> zstd -> the caller's buffer, without zarr between them.

It knows exactly the codec chains that this release writes (`store.open_view` says which arrays have them); everything
else goes through zarr-python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.chunks import decode_chunk, index_bytes, read_index
from featcache.errors import DamagedError
from featcache.layout import MapFiles
from featcache.source import Source


def read_bands(
    source: Source, files: MapFiles, index: int, bands: Sequence[int], parts: Sequence[NDArray[Any]]
) -> None:
    """Read the tokens of some bands of image `index` into parts of a map, "tokens channels"; raises DamagedError.

    The last band of a map may reach beyond its part, which ends with the map.
    """
    step = files.level.band_tokens
    for part, data in zip(parts, read_chunks(source, files, index, bands), strict=True):
        if len(part) == step:
            decode_chunk(data, part, compress=files.compress)
        else:
            whole = np.empty((step, part.shape[1]), part.dtype)
            decode_chunk(data, whole, compress=files.compress)
            part[...] = whole[: len(part)]


def read_chunks(source: Source, files: MapFiles, index: int, bands: Sequence[int]) -> list[bytes]:
    """Stored bytes of some bands of image `index`; raises DamagedError where they are missing."""
    shard, place = divmod(index, files.shard)
    key = files.key(shard)
    try:
        if files.places == 1:
            return [source.read(key)]
        table = read_index(source.read(key, -index_bytes(files.places)))
        first = place * files.level.bands
        spans = [span for span in (table[first + band] for band in bands) if span is not None]
        if len(spans) < len(bands):
            raise DamagedError(f"{key} does not hold it")
        return [data or b"" for data in source.read_ranges([(key, *span) for span in spans])]
    except FileNotFoundError as error:
        raise DamagedError(f"{key} is missing") from error
