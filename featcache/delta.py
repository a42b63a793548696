"""Whether the maps of a level are stored as differences of their rows: whichever is smaller on the first images.

One image may be unlike the others: on maps of a trained ResNet-50 the first of six was smaller without differences, all
six together with them, by 3 % of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from featcache import codecs
from featcache.chunks import encode_chunk
from featcache.record import Record
from featcache.spec import CacheSpec

MEASURED_IMAGES = 8
"""How many images of a view decide; they wait in memory meanwhile."""


def delta_is_smaller(spec: CacheSpec, level: str, records: Sequence[Record]) -> bool:
    """Whether these records, of plain uint8 tokens, take fewer bytes of a level as differences of rows."""
    plain = sum(len(encode_chunk(record.tokens[level], compress=True)) for record in records)
    return sum(len(encode_chunk(row_differences(spec, level, record), compress=True)) for record in records) < plain


def row_differences(spec: CacheSpec, level: str, record: Record) -> NDArray[Any]:
    """The plain tokens "t c" of a level as differences of rows, of the same shape."""
    tokens, (h, w) = record.tokens[level], record.level_hw(spec.position(level))
    return codecs.add_delta(torch.as_tensor(tokens).view(h, w, -1)).numpy().reshape(tokens.shape)
