"""Progress on stderr: a bar on a terminal, elsewhere one line every few seconds. Results never go here.

All long work of the project shows the same: pieces done of all, pieces a second, time left, and then facts of its own,
bytes first (`written`, `read`).
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Progress:
    """Counts `total` pieces of work; a context manager.

    `update(n, facts)` adds n pieces and shows facts such as `12.3 MB/s` beside count, rate and ETA; without facts,
    those of the last update that had some.
    """

    def __init__(self, total: int, unit: str, *, done: int = 0, every_seconds: float = 5.0) -> None:
        self.total, self.unit, self.done = total, unit, done
        self.start = time.monotonic()
        self._first, self._every, self._shown = done, every_seconds, self.start
        self._facts = ""
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # not needed for a line now and then

            self._bar = cast(Any, tqdm)(total=total, initial=done, unit=f" {unit}", file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the start of this run."""
        return max(time.monotonic() - self.start, 1e-9)

    def update(self, pieces: int, facts: str = "") -> None:
        """Add finished pieces; a line is printed if the last one is some seconds old, and at the end."""
        self.done += pieces
        self._facts = facts or self._facts
        if self._bar is not None:
            self._bar.set_postfix_str(self._facts, refresh=False)
            self._bar.update(pieces)
        elif time.monotonic() - self._shown >= self._every or self.done >= self.total:
            self._shown = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = (self.done - self._first) / self.seconds
        eta = f", ETA {clock((self.total - self.done) / rate)}" if rate and self.done < self.total else ""
        line = f"{self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s{eta}"
        return f"{line}, {self._facts}" if self._facts else line


def track(
    items: Iterable[T], total: int, unit: str = "images", facts: Callable[[float], str] = lambda seconds: ""
) -> Iterator[T]:
    """The items, counted as they are used. facts: what to show beside the count, told the seconds since the start."""
    with Progress(total, unit) as progress:
        for item in items:
            yield item
            progress.update(1, facts(progress.seconds))


def written(path: Path, count: int, seconds: float) -> str:
    """Facts of work that writes: speed, bytes written so far, and bytes free where `path` lies."""
    free = shutil.disk_usage(path).free
    return f"{count / seconds / 1e6:.1f} MB/s, {count / 1e9:.2f} GB written, {free / 1e9:.0f} GB free"


def read(count: int, seconds: float) -> str:
    """Facts of work that reads: speed, and bytes read so far."""
    return f"{count / seconds / 1e6:.1f} MB/s, {count / 1e9:.2f} GB read"


def clock(seconds: float) -> str:
    """Seconds as hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
