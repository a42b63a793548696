"""Progress on stderr: a bar on a terminal, one line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_LINE_SECONDS = 10.0


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The items, counted on stderr as they are used."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, unit="image", leave=False)
        return
    started = last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last, rate = now, count / (now - started)
            left = (total - count) / rate
            print(f"{label} {count}/{total}, {rate:.1f} images/s, {left:.0f} s left", file=sys.stderr, flush=True)
