"""The one loop of evaluation, for one head or many: each image is read and decoded once, its masks encoded at once.

Every run gets metrics.json, results.json (COCO's format for masks), own_boxes.json where the head tells boxes of its
own, quality.json (each image) and, in metrics/, per_class.json and pr.json (precision over recall): `evaluate.main`.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO

from featcache.progress import Progress, read

from .contender import Contender
from .data.panoptic import CATEGORIES
from .data.sources import Batch, Cached, maps_asked_for
from .errors import PipelineError
from .files import JsonList, write_json
from .heads.base import Masks
from .masks.boundary import boundary_figures, boundary_known
from .masks.coco_eval import RECALLS, Evaluation, Figures, coco_evaluation, coco_ground_truth
from .masks.image_results import ImageResults, image_results
from .masks.lost_ap import lost_ap
from .masks.results import Result
from .segment_scores import SegmentScores
from .training.checkpoint import check_features, load_head

METRICS = "metrics.json"
EVALUATED = "evaluated.json"
"""On what the metrics of a run were taken, and the metrics."""
RESULTS, BOXES, OWN_BOXES = "results.json", "boxes.json", "own_boxes.json"
"""COCO results: masks, the detector's boxes, and those of a head that tells its own, in the order of the masks."""
QUALITY = "quality.json"
"""How well each image came out."""

DETAILS = "metrics"
"""Folder of what is more than one page."""
CLASSES, CURVES, LOST = "per_class.json", "pr.json", "lost_ap.json"
"""In `DETAILS`: each class, precision over recall, where AP is lost."""
SEGMENT_CLASSES, SEGMENT_QUALITY = "segments.json", "segment_quality.json"
"""In `DETAILS`, of heads for semantic or panoptic segmentation: each class, and PQ and mIoU of each image."""

Drop = Callable[[Path, Exception], None]
"""Told of a run whose head failed; the others go on unless it raises."""


def stop(_folder: Path, error: Exception) -> None:
    """A `Drop` that raises the error: where one head is all there is to evaluate."""
    raise error


def evaluate_together(
    source: Cached, runs: Sequence[Path], *, holdout: int, drop: Drop = stop
) -> dict[Path, dict[str, Any]]:
    """The metrics of these runs, as `evaluate.main` gives them and with the files that it writes, but for lost_ap.json.

    Runs that were evaluated on the same images before are not evaluated again. holdout: see `evaluate.main`.
    """
    indices = images_to_evaluate(source, holdout)
    identity = evaluation_identity(source, holdout, indices)
    metrics = {run: known for run in runs if (known := evaluated(run, identity)) is not None}
    contenders: list[Contender] = []
    for run in runs:
        if run not in metrics:
            head, trained = load_head(run, source.device)
            check_features(trained, source.cache.spec, f"cache {source.cache.path}")
            contenders.append(Contender.of_head(run, head, source))
    return metrics | evaluate_contenders(source, contenders, indices, identity=identity, drop=drop)


def evaluate_contenders(
    source: Cached,
    contenders: Sequence[Contender],
    indices: Sequence[int],
    *,
    identity: Mapping[str, Any],
    drop: Drop = stop,
    errors: bool = False,
    boundary: bool = True,
) -> dict[Path, dict[str, Any]]:
    """The metrics of these contenders on these images; writes the files of the evaluation into their run directories.

    errors: write metrics/lost_ap.json and boxes.json too, for five more evaluations of each contender. boundary: take
    boundary AP too, the dearest figure, where its package is installed.
    """
    view, maps = source.cache.views[0], maps_asked_for((one.maps_read for one in contenders), source.spec)
    scores = [_Scores(contender) for contender in contenders]
    boxes: list[Result] = []
    if not scores:
        return {}
    before = source.cache.bytes_read
    with Progress(len(indices), "images") as progress:
        for index in indices:
            batch = source.batch([(index, view)], maps)
            found: ImageResults | None = None
            for score in list(scores):
                try:
                    masks = score.contender.predict(batch)
                    found = image_results(batch, masks, source.categories)
                    score.add_segments(batch, masks, source)
                except (RuntimeError, MemoryError, PipelineError) as error:
                    scores.remove(score)
                    score.discard()
                    drop(score.contender.folder, error)
                    continue
                score.add(found, batch.infos[0].id)
            boxes += found.boxes if found is not None else []
            facts = [f"{len(scores)} heads"] if len(contenders) > 1 else []
            progress.update(1, ", ".join([*facts, read(source.cache.bytes_read - before, progress.seconds)]))
            if not scores:
                return {}
    truth = truth_of(source, indices)
    bbox = coco_evaluation(truth, boxes, "bbox")  # of the frozen detector: the same for every head
    metrics: dict[Path, dict[str, Any]] = {}
    for score in scores:
        results, own = score.results(), score.own_boxes()
        folder = score.contender.folder
        judged = {"segm": coco_evaluation(truth, results, "segm"), "bbox": bbox}
        if own is not None:
            judged["own_bbox"] = coco_evaluation(truth, own, "bbox")
        (folder / DETAILS).mkdir(exist_ok=True)
        write_json(folder / DETAILS / CLASSES, per_class(truth, judged), indent=2)
        curves = {kind: evaluation.curves for kind, evaluation in judged.items()}
        write_json(folder / DETAILS / CURVES, {"recall": RECALLS, **curves})
        if errors:
            write_json(folder / BOXES, boxes)
            lost = lost_ap(truth, results, boxes if own is None else own)
            write_json(folder / DETAILS / LOST, lost, indent=2)
        else:  # of another evaluation
            for stale in (folder / BOXES, folder / DETAILS / LOST):
                stale.unlink(missing_ok=True)
        figures = {kind: evaluation.figures for kind, evaluation in judged.items()}
        if boundary and boundary_known():
            figures["boundary"] = boundary_figures(truth, results)
        figures |= score.segment_figures()
        metrics[folder] = score.write(figures, identity)
    return metrics


def evaluation_identity(source: Cached, holdout: int, indices: Sequence[int]) -> dict[str, Any]:
    """What metrics depend on beside the head."""
    return {"cache": source.cache.spec.fingerprint, "holdout": holdout, "images": len(indices)}


def evaluated(run: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metrics of a run on these images, None where it has none, or none of what is installed since."""
    try:
        known = json.loads((run / EVALUATED).read_text())
    except FileNotFoundError:
        return None
    whole = "boundary" in known["metrics"] or not boundary_known()
    return known["metrics"] if whole and known["identity"] == dict(identity) else None


def images_to_evaluate(source: Cached, holdout: int) -> list[int]:
    """Positions of the images that are extracted, of those held out; what is missing is counted on stderr."""
    indices = source.finished(source.cache.views[:1])
    if len(indices) < len(source):
        missing = f"{len(source) - len(indices)} of {len(source)} images of {source.cache.path} are not extracted"
        print(f"warning: {missing} and are left out of the evaluation", file=sys.stderr)
    return [index for index in indices if not holdout or index % holdout == 0]


def truth_of(source: Cached, indices: Sequence[int]) -> COCO:
    """The ground truth of these images, for `coco_evaluation`."""
    images = [source.cache.images[index] for index in indices]
    return coco_ground_truth(images, [source.cache.ground_truth(index) for index in indices], source.categories)


def per_class(truth: COCO, found: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """One row per category by id: name, objects without crowds, and of each kind (`segm`, ...) AP, AP50 and AP75."""
    objects = [one["category_id"] for one in truth.dataset["annotations"] if not one["iscrowd"]]
    return [
        {
            "category_id": category["id"],
            "name": category["name"],
            "objects": objects.count(category["id"]),
            **{kind: evaluation.classes[category["id"]] for kind, evaluation in found.items()},
        }
        for category in truth.dataset["categories"]
    ]


class _Scores:
    """What one contender says about the images so far; its results go to the disk, being the bulk of it."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._quality: list[dict[str, Any]] = []
        self._ious: list[float] = []
        contender.folder.mkdir(parents=True, exist_ok=True)
        self._masks = JsonList(contender.folder / RESULTS)
        self._own: JsonList | None = None
        self._segments: SegmentScores | None = None

    def add(self, found: ImageResults, image_id: int) -> None:
        """The results of the next image.

        Masks without boxes, and the head's own boxes in a file of their own: in one, pycocotools would take the areas
        of the boxes for those of the masks when it reads the file.
        """
        for result in found.masks:
            self._masks.add({key: value for key, value in result.items() if key != "bbox"})
        if found.own_boxes is not None:
            self._own = self._own or JsonList(self.contender.folder / OWN_BOXES)
            for box in found.own_boxes:
                self._own.add(box)
        self._ious += found.ious
        self._quality.append(found.quality(image_id))

    def add_segments(self, batch: Batch, masks: Masks, source: Cached) -> None:
        """The same of a head for semantic or panoptic segmentation; of others nothing."""
        if masks.queries is not None:
            if self._segments is None:
                categories: Any = source.spec.recipe.get(CATEGORIES, [])
                self._segments = SegmentScores(self.contender.folder, masks.queries, categories)
            self._segments.add(batch, masks.queries)

    def segment_figures(self) -> dict[str, Figures]:
        """`panoptic` and `semantic` where the head is for them; writes their files."""
        details = self.contender.folder / DETAILS
        if self._segments is None:
            for stale in (details / SEGMENT_CLASSES, details / SEGMENT_QUALITY):  # of another evaluation
                stale.unlink(missing_ok=True)
            return {}
        self._segments.write_classes(details / SEGMENT_CLASSES)
        self._segments.write_images(details / SEGMENT_QUALITY)
        return self._segments.write()

    def results(self) -> list[Result]:
        """All masks; none can be added any more."""
        self._release()  # the figures need memory, the head does not
        return self._masks.read()

    def own_boxes(self) -> list[Result] | None:
        """All boxes of the head's own, None where it tells none."""
        return None if self._own is None else self._own.read()

    def write(self, figures: Mapping[str, Figures], identity: Mapping[str, Any]) -> dict[str, Any]:
        """Put the files of the evaluation into the run; returns its metrics, the content of metrics.json."""
        run, mean = self.contender.folder, round(float(np.mean(self._ious)), 4) if self._ious else None
        metrics = {**figures, "mask_iou": mean, "matched": len(self._ious), "images": len(self._quality)}
        self._masks.keep()
        (run / OWN_BOXES).unlink(missing_ok=True)  # of another evaluation
        if self._own is not None:
            self._own.keep()
        write_json(run / QUALITY, self._quality)
        write_json(run / METRICS, metrics, indent=2)
        write_json(run / EVALUATED, {"identity": dict(identity), "metrics": metrics}, indent=2)
        return metrics

    def discard(self) -> None:
        """Leave nothing of it."""
        self._masks.discard()
        if self._own is not None:
            self._own.discard()
        if self._segments is not None:
            self._segments.discard()
        self._release()

    def _release(self) -> None:
        if self.contender.head is not None:
            self.contender.head.to("meta")
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
