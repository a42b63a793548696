"""log.txt of a run: what a training said on stderr, whatever kind of terminal it said it to."""

import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

from ..errors import PipelineError

LOG = "log.txt"
_CURSOR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Tee:
    """stderr that is copied to a file: whole lines, and of a bar that is drawn over and over one now and then."""

    def __init__(self, terminal: IO[str], file: IO[str], every_seconds: float = 5.0) -> None:
        self._terminal, self._file, self._every = terminal, file, every_seconds
        self._line, self._bar_at = "", time.monotonic()

    def write(self, text: str) -> int:
        """As of a stream; raises nothing that the terminal does not raise."""
        for piece in text.splitlines(keepends=True):
            bar = piece.endswith("\r") and not piece.endswith("\n")
            self._line += piece.rstrip("\r\n")
            if piece.endswith("\n") or (bar and time.monotonic() - self._bar_at >= self._every):
                line = _CURSOR.sub("", self._line).rstrip()
                if line:
                    self._file.write(line + "\n")
                    self._file.flush()
                self._bar_at = time.monotonic()
            if piece[-1:] in ("\r", "\n"):
                self._line = ""
        return self._terminal.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


@contextmanager
def logged(file: Path, title: str) -> Iterator[None]:
    """Copies stderr to the end of `file` inside the block, after a line with the time and `title`.

    An error that leaves the block is written too: its words, and of one that nobody foresaw the traceback.
    """
    with file.open("a") as stream:
        stream.write(f"--- {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {title}\n")
        stream.flush()
        try:
            with redirect_stderr(cast(Any, Tee(sys.stderr, stream))):
                yield
        except PipelineError as error:
            stream.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
            raise
        except BaseException:
            stream.write(traceback.format_exc())
            raise
