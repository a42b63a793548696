"""One writer per cache: a kernel lock on a small file, so that it ends with the process however that dies."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featcache.errors import LockedError

LOCK_NAME = "writer"
_SIZE = 512


class WriterLock:
    """Held from construction to `release`; raises LockedError, naming the holder, while another process has it.

    The locked file is `writer/zarr.json`, the metadata of an empty group that names the holder in its attributes: any
    other file would make zarr warn of an unknown object in the cache. `prune` holds one of its own `name`.
    """

    def __init__(self, directory: Path, name: str = LOCK_NAME) -> None:
        # Never removed, never replaced: a lock on a name that another process unlinks would exclude nobody.
        path = directory / name / "zarr.json"
        path.parent.mkdir(exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._file, _SIZE, 0)
            os.close(self._file)
            raise LockedError(
                f"cache {directory} is being written by another process ({_words(holder)})",
                "wait for it, or stop it and run the same command again; a dead process holds no lock",
            ) from error
        except OSError:
            os.close(self._file)
            raise
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._write({"pid": os.getpid(), "host": os.uname().nodename, "since": since})

    def release(self) -> None:
        """Let the next writer in."""
        self._write({})
        os.close(self._file)

    def _write(self, holder: dict[str, object]) -> None:
        document = {"zarr_format": 3, "node_type": "group", "attributes": holder}
        # One write of one size and no truncation, so that a reader never finds half a document.
        os.pwrite(self._file, json.dumps(document).encode().ljust(_SIZE), 0)


def living_writer(directory: Path) -> dict[str, Any] | None:
    """`pid`, `host` and `since` (ISO 8601) of the process that writes a cache, None where there is none.

    Looks, and takes no lock, which could turn away a writer that starts at this instant. On another host the word of
    the file is taken.
    """
    try:
        holder: dict[str, Any] = json.loads((directory / LOCK_NAME / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError):
        return None
    if not holder or (holder["host"] == os.uname().nodename and not _lives(int(holder["pid"]))):
        return None
    return holder


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _words(document: bytes) -> str:
    try:
        return ", ".join(f"{name} {value}" for name, value in json.loads(document)["attributes"].items())
    except ValueError:
        return "unknown"
