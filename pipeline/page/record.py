"""What a run directory tells: its settings, the course of its training, and its last evaluation."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PipelineError
from ..evaluation import CLASSES, CURVES, DETAILS, EVALUATED, LOST, METRICS, QUALITY
from ..masks.coco_eval import PER_CLASS
from ..training.checkpoint import CONFIG, HEAD, Run, read_run
from ..training.checks import count_parameters
from ..training.track import read_track

Row = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A run, as far as it has come: what is not there yet is None or empty."""

    folder: Path
    name: str
    run: Run | None
    """None for an evaluated reference, which nobody trained."""
    parameters: int | None
    head_bytes: int | None
    log: list[Row]
    """Of metrics.jsonl; figures of an evaluation on the way are `val/AP`, `val/AP50` and `val/AP75`."""
    metrics: Row | None
    identity: Row | None
    """On what the metrics were taken."""
    classes: list[Row] = field(default_factory=list[Row])
    curves: Row | None = None
    lost: dict[str, float | None] | None = None
    quality: list[Row] = field(default_factory=list[Row])

    @property
    def reference(self) -> str:
        """The reference (`box` or `oracle`) whose masks the metrics are of; empty where they are a head's."""
        return (self.identity or {}).get("reference", "")


def read_record(folder: Path, name: str) -> Record:
    """Read a run directory; raises PipelineError where it is neither a run nor evaluated."""
    metrics = _json(folder / METRICS)
    if metrics is None and not (folder / CONFIG).exists():
        raise PipelineError(
            f"{folder} is no run: it has neither {CONFIG} nor {METRICS}",
            "python -m pipeline train --cache DIR --head NAME --run DIR",
        )
    run = read_run(folder) if (folder / CONFIG).exists() else None
    head = folder / HEAD
    evaluated = _json(folder / EVALUATED)
    return Record(
        folder=folder,
        name=name,
        run=run,
        parameters=None if run is None else count_parameters(run.recipe, run.widths),
        head_bytes=head.stat().st_size if head.exists() else None,
        log=[_flat(row) for row in read_track(folder)],
        metrics=metrics,
        identity=evaluated["identity"] if evaluated else None,
        classes=_json(folder / DETAILS / CLASSES) or [],
        curves=_json(folder / DETAILS / CURVES),
        lost=_json(folder / DETAILS / LOST),
        quality=_json(folder / QUALITY) or [],
    )


def names_of(folders: list[Path]) -> list[str]:
    """The last part of each path that tells it from the others."""
    whole = [folder.resolve().parts for folder in folders]
    for parts in range(1, max(map(len, whole), default=1) + 1):
        names = ["/".join(one[-parts:]) for one in whole]
        if len(set(names)) == len(names):
            return names
    raise PipelineError("a run is named twice", "give each run once")


def _flat(row: Row) -> Row:
    figures: dict[str, float | None] = row.get("val") or {}
    return {**row, **{f"val/{name}": figures[name] for name in PER_CLASS if figures.get(name) is not None}}


def _json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None
