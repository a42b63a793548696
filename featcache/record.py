"""One image in one view as it is stored: what writer threads get, what a reader decodes, what `copy` moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from featcache.chunks import crc32c


@dataclass(frozen=True)
class Record:
    """Stored tokens "t c" by level (row differences where it has them) and the rows of `layout.row_arrays`."""

    index: int
    view: str
    tokens: dict[str, NDArray[Any]]
    rows: dict[str, NDArray[Any]]
    read: dict[str, list[range]] = field(default_factory=dict[str, list[range]])
    """Of a level that was not read whole: the tokens that were. The others hold anything."""

    def level_hw(self, position: int) -> tuple[int, int]:
        """Grid of the level at that position of the spec."""
        h, w = self.rows["level_hw"][position].tolist()
        return h, w


def rows_checksum(rows: Mapping[str, bytes]) -> int:
    """CRC-32C of the row bytes of one image, given in the order of `layout.row_arrays`."""
    return crc32c(b"".join(rows.values()))
