"""Files that appear whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(file: Path, content: Any, indent: int | None = None) -> None:
    """Write `content` beside `file` and rename, so that a reader or a killed run never sees a part of it."""
    part = file.with_name(f"{file.name}.part")
    with part.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=indent)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
