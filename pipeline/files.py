"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """A stream beside `file` that becomes it when the block ends well: no reader or killed run ever sees a part."""
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


def write_json(file: Path, content: Any, indent: int | None = None) -> None:
    """Write `content` as JSON, whole or not at all."""
    with whole_file(file) as stream:
        stream.write(json.dumps(content, indent=indent).encode())
