"""One writer per cache: a kernel lock on a small file, so that it ends with the process however that dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from featcache.errors import LockedError

LOCK_NAME = ".writer"


class WriterLock:
    """Held from construction to `release`; raises LockedError, naming the holder, while another process has it."""

    def __init__(self, directory: Path) -> None:
        # The file is never removed: a lock on a name that another process unlinks would exclude nobody.
        self._file = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._file, 4096, 0).decode(errors="replace").strip()
            os.close(self._file)
            raise LockedError(
                f"cache {directory} is being written by another process {holder}",
                "wait for it, or stop it and run the same command again; a dead process holds no lock",
            ) from error
        except OSError:
            os.close(self._file)
            raise
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(me).encode(), 0)

    def release(self) -> None:
        """Let the next writer in."""
        os.ftruncate(self._file, 0)
        os.close(self._file)
