"""The numbers of a training: one JSON object a line in `metrics.jsonl`, and one readable line on stderr."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch


class Track:
    """Appends to RUN/metrics.jsonl. What a run that was killed wrote beyond its last checkpoint is dropped."""

    def __init__(self, run: Path, step: int) -> None:
        self._file = run / "metrics.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self._file.write_text("".join(line + "\n" for line in kept))

    def log(self, numbers: dict[str, Any]) -> None:
        """Append one object; `step` is among its keys."""
        with self._file.open("a") as file:
            file.write(json.dumps(numbers) + "\n")


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
