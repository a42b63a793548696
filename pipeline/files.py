"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UsageError


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """A stream beside `file` that becomes it when the block ends well: no reader or killed run ever sees a part."""
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


class JsonList:
    """A list that grows on the disk, item by item, and is a file once it is whole."""

    def __init__(self, file: Path) -> None:
        self.file, self._part = file, file.with_name(f"{file.name}.part")
        self._stream, self._between = self._part.open("w"), "["

    def add(self, item: Any) -> None:
        """Append it."""
        self._stream.write(self._between + json.dumps(item))
        self._between = ", "

    def read(self) -> list[Any]:
        """All items; nothing can be added any more."""
        if not self._stream.closed:
            self._stream.write("[]" if self._between == "[" else "]")
            self._stream.close()
        return json.loads(self._part.read_text())

    def keep(self) -> None:
        """Make it the file; after `read`."""
        self._part.replace(self.file)

    def discard(self) -> None:
        """Leave nothing of it."""
        self._stream.close()
        self._part.unlink()


def check_folder(folder: Path, option: str) -> None:
    """Raise UsageError where what an option names as a directory is something else."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a directory", f"give another {option}")


def write_json(file: Path, content: Any, indent: int | None = None) -> None:
    """Write `content` as JSON, whole or not at all."""
    with whole_file(file) as stream:
        stream.write(json.dumps(content, indent=indent).encode())
