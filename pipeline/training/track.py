"""The numbers of a training: one JSON object a line in `metrics.jsonl`, of two kinds.

A line of the training has the terms of the loss, `lr`, speed and memory; a line of an evaluation on the way has `val`,
the figures of the masks (percent), and `best`. Both have `step`. Whoever draws curves reads them here.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from ..files import whole_file

METRICS = "metrics.jsonl"
TERMS = (
    "loss", "class", "l1", "giou", "bce", "dice", "scoring", "selected", "interaction", "denoising", "detection",
)  # fmt: skip
"""The sum of the loss and every term that a family may have, as they are shown."""

Row = dict[str, Any]


class Track:
    """Appends to RUN/metrics.jsonl. What a run that was killed wrote beyond its last checkpoint is dropped."""

    def __init__(self, run: Path, step: int) -> None:
        self._file = run / METRICS
        kept = [row for row in read_track(run) if row["step"] <= step]
        with whole_file(self._file) as stream:
            stream.writelines(json.dumps(row).encode() + b"\n" for row in kept)

    def log(self, numbers: Row) -> None:
        """Append one object; `step` is among its keys."""
        with self._file.open("a") as file:
            file.write(json.dumps(numbers) + "\n")


def read_track(run: Path) -> list[Row]:
    """The lines of a run's metrics.jsonl, none where it has none; one that a kill cut short is left out."""
    file = run / METRICS
    rows: list[Row] = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def numbers(row: Row) -> dict[str, float]:
    """The numbers of a line by name, `step` apart; those of an evaluation are `val/AP` and so on."""
    flat = {**row, **{f"val/{name}": value for name, value in row.get("val", {}).items()}}
    return {
        name: value
        for name, value in flat.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def validations(run: Path) -> list[Row]:
    """The lines of the evaluations on the way, by step."""
    return [row for row in read_track(run) if "val" in row]


def best_step(run: Path) -> int | None:
    """The step whose weights are best.pt, None where the run was not evaluated on the way."""
    return max((row["step"] for row in validations(run) if row["best"]), default=None)


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
