"""Many trained heads on one cache: each image is read and decoded once. Every run gets the files of `evaluate`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from featcache.progress import Progress

from .data.sources import Cached
from .evaluate import ImageResults, as_metrics, image_results, images_to_evaluate, truth_of
from .files import write_json
from .heads.base import MaskHead
from .masks.coco_eval import coco_figures
from .masks.results import Result
from .training.checkpoint import check_features, load_head

EVALUATED = "evaluated.json"
"""On what the metrics of a run were taken, and the metrics."""

Figures = Mapping[str, float | None]
"""COCO's twelve figures by name."""

Drop = Callable[[Path, Exception], None]
"""Told of a run whose head failed; the others go on."""


def evaluate_together(source: Cached, runs: Sequence[Path], *, holdout: int, drop: Drop) -> dict[Path, dict[str, Any]]:
    """The metrics of these runs, as `evaluate.main` gives them and with the files that it writes.

    Runs that were evaluated on the same images before are not evaluated again. holdout: see `evaluate.main`.
    """
    view = source.cache.views[0]
    indices = images_to_evaluate(source, holdout)
    identity = {"cache": source.cache.spec.fingerprint, "holdout": holdout, "images": len(indices)}
    metrics = {run: known for run in runs if (known := evaluated(run, identity)) is not None}
    scores: list[_Scores] = []
    for run in runs:
        if run not in metrics:
            head, trained = load_head(run, source.device)
            check_features(trained, source.cache.spec, f"cache {source.cache.path}")
            scores.append(_Scores(run, head))
    if not scores:
        return metrics
    boxes: list[Result] = []
    with Progress(len(indices), "images") as progress:
        for index in indices:
            batch = source.batch([(index, view)])
            found: ImageResults | None = None
            for score in list(scores):
                try:
                    masks = score.head.predict(batch.features, batch.counts)[0]
                    found = image_results(batch, masks, source.categories)
                except (RuntimeError, MemoryError) as error:
                    scores.remove(score)
                    score.discard()
                    drop(score.run, error)
                    continue
                score.add(found, batch.infos[0].id)
            boxes += found.boxes if found is not None else []
            progress.update(1, f"{len(scores)} heads")
            if not scores:
                break
    if not scores:
        return metrics
    truth = truth_of(source, indices)
    bbox = coco_figures(truth, boxes, "bbox")  # of the frozen detector: the same for every head
    for score in scores:
        segm = coco_figures(truth, score.results(), "segm")
        metrics[score.run] = score.write(segm, bbox, identity)
    return metrics


def evaluated(run: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metrics of a run on these images, None where it has none."""
    try:
        known = json.loads((run / EVALUATED).read_text())
    except FileNotFoundError:
        return None
    return known["metrics"] if known["identity"] == dict(identity) else None


class _Scores:
    """What one head says about the images so far; its results go to the disk, being the bulk of it."""

    def __init__(self, run: Path, head: MaskHead) -> None:
        self.run, self.head = run, head
        self._quality: list[dict[str, Any]] = []
        self._ious: list[float] = []
        self._part = run / "results.json.part"
        self._file = self._part.open("w")
        self._file.write("[")
        self._any = False

    def add(self, found: ImageResults, image_id: int) -> None:
        """The results of the next image."""
        for result in found.masks:
            self._file.write((", " if self._any else "") + json.dumps(result))
            self._any = True
        self._ious += found.ious
        self._quality.append(found.quality(image_id))

    def results(self) -> list[Result]:
        """All results, read back; closes the file."""
        self._file.write("]")
        self._file.close()
        self.head.to("meta")  # the figures need memory, the head does not
        return json.loads(self._part.read_text())

    def write(self, segm: Figures, bbox: Figures, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Put the files of the evaluation into the run; returns its metrics."""
        metrics = as_metrics(segm, bbox, self._ious, len(self._quality))
        self._part.replace(self.run / "results.json")
        write_json(self.run / "quality.json", self._quality)
        write_json(self.run / "metrics.json", metrics, indent=2)
        write_json(self.run / EVALUATED, {"identity": dict(identity), "metrics": metrics}, indent=2)
        return metrics

    def discard(self) -> None:
        """Leave nothing of it."""
        self._file.close()
        self._part.unlink()
        if torch.cuda.is_initialized():
            self.head.to("meta")
            torch.cuda.empty_cache()
