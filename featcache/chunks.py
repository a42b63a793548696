"""The bytes of one chunk and of one shard, exactly as zarr's codecs zstd, crc32c and sharding_indexed write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featcache import zstd
from featcache.errors import DamagedError
from featcache.spec import LevelSpec

CHECKSUM_BYTES = 4
_RESIDUE = 0x48674BC7  # CRC-32C of any bytes followed by their own CRC-32C
_ABSENT = np.uint64(2**64 - 1)


def crc32c(data: bytes) -> int:
    """CRC-32C of bytes, as zarr's `crc32c` codec computes it."""
    return cast(Any, google_crc32c).value(data)


def encode_chunk(values: NDArray[np.generic], *, compress: bool) -> bytes:
    """Stored bytes of one chunk of contiguous little-endian values."""
    body = zstd.compress(values) if compress else values.tobytes()
    return body + crc32c(body).to_bytes(CHECKSUM_BYTES, "little")


def encode_bands(values: NDArray[np.generic], level: LevelSpec, *, compress: bool) -> list[bytes]:
    """Stored bytes of the chunks of one map of tokens "t c", which is padded with zeros to whole bands."""
    from featcache.codecs import pad_tokens  # imports torch, which a reader of tables does without

    padded = pad_tokens(values, level.bands * level.band_tokens)
    bands = padded.reshape(level.bands, level.band_tokens, -1)
    return [encode_chunk(band, compress=compress) for band in bands]


def decode_chunk(data: bytes, out: NDArray[np.generic], *, compress: bool) -> None:
    """Write the values of one stored chunk into `out`, contiguous and of its exact size; raises DamagedError."""
    body = check_body(data)
    try:
        if compress:
            if content_size(body) != out.nbytes:  # numcodecs would leave the end of `out` as it was
                raise ValueError(f"{content_size(body)} bytes, expected {out.nbytes}")
            zstd.codec.decode(body, out)
        else:
            out.reshape(-1).view(np.uint8)[:] = np.frombuffer(body, np.uint8)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DamagedError(f"chunk does not decode: {error}") from error


def check_body(data: bytes) -> memoryview:
    """The chunk without its checksum; raises DamagedError where that does not match."""
    if len(data) < CHECKSUM_BYTES or crc32c(data) != _RESIDUE:
        raise DamagedError("checksum does not match")
    return memoryview(data)[:-CHECKSUM_BYTES]


def content_size(frame: memoryview) -> int:
    """Bytes in a zstd frame, from its header (RFC 8878, section 3.1.1.1)."""
    flags = frame[4]
    single_segment = flags >> 5 & 1
    length = (single_segment, 2, 4, 8)[flags >> 6]
    start = 6 - single_segment + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(frame[start : start + length], "little") + (256 if length == 2 else 0)


def pack_shard(chunks: Mapping[int, bytes], size: int) -> bytes:
    """One shard of `size` chunk places from the stored chunks by place; the index stands at the end."""
    index = np.full((size, 2), _ABSENT, np.dtype("<u8"))
    parts: list[bytes] = []
    position = 0
    for place in sorted(chunks):
        index[place] = position, len(chunks[place])
        parts.append(chunks[place])
        position += len(chunks[place])
    table = index.tobytes()
    return b"".join([*parts, table, crc32c(table).to_bytes(CHECKSUM_BYTES, "little")])


def index_bytes(size: int) -> int:
    """Length of the index at the end of a shard of `size` places."""
    return 16 * size + CHECKSUM_BYTES


def read_index(data: bytes) -> list[tuple[int, int] | None]:
    """(offset, length) of each place from the index bytes of a shard, None where absent; raises DamagedError."""
    table = np.frombuffer(check_body(data), np.dtype("<u8")).reshape(-1, 2)
    return [None if offset == _ABSENT else (int(offset), int(length)) for offset, length in table]


def unpack_shard(data: bytes, size: int) -> dict[int, bytes]:
    """The stored chunks of a whole shard by place."""
    places = read_index(data[-index_bytes(size) :])
    return {place: data[span[0] : span[0] + span[1]] for place, span in enumerate(places) if span is not None}
