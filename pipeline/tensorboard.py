"""Runs -> TensorBoard event files: a reader of metrics.jsonl, which stays the only thing that a training writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .errors import PipelineError
from .training.track import METRICS, numbers, read_track

FOLDER = "tensorboard"


class Writer(Protocol):
    """What is used of `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """A point of a curve."""
        ...

    def close(self) -> None:
        """All points are on the disk."""
        ...


def main(*, runs: Sequence[Path]) -> list[Path]:
    """Write every number of each run into RUN/tensorboard, in place of what an earlier call wrote; returns the folders.

    Raises PipelineError where a run has no numbers, or TensorBoard is not installed.
    """
    without = [run for run in runs if not read_track(run)]
    if without:
        raise PipelineError(
            f"{without[0]} has no {METRICS}, or nothing in it yet",
            "python -m pipeline train --cache DIR --head NAME --run DIR",
        )
    return [_convert(run) for run in runs]


def _convert(run: Path) -> Path:
    folder = run / FOLDER
    rows = read_track(run)
    writer = open_writer(folder.with_name(f"{FOLDER}.part"))
    for row in rows:
        for name, value in numbers(row).items():
            writer.add_scalar(name, value, global_step=row["step"])
    writer.close()
    _replace(folder.with_name(f"{FOLDER}.part"), folder)
    return folder


def open_writer(folder: Path) -> Writer:
    """An event file in this folder; raises PipelineError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise PipelineError(
            "TensorBoard is not installed; the curves are in `python -m pipeline report` without it",
            "pip install 'featcache[tensorboard]'",
        ) from None
    return SummaryWriter(folder)


def _replace(new: Path, folder: Path) -> None:
    """The event files of `new` in place of those in `folder`; nothing else in it is touched."""
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("events.out.tfevents.*"):
        stale.unlink()
    for file in new.glob("events.out.tfevents.*"):
        file.replace(folder / file.name)
    new.rmdir()
