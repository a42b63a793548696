"""pycocotools on results and ground truth in memory: the twelve COCO figures, each class, precision over recall.

In percent as papers print them.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from featcache import GroundTruth, ImageInfo

from . import rle
from .results import Result

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
PER_CLASS = FIGURES[:3]
RECALLS = tuple(round(0.01 * step, 2) for step in range(101))
"""Where COCO reads precision off."""

Figures = dict[str, float | None]
"""Percent by name; None where the ground truth has no such object."""
Kind = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Evaluation:
    """What COCO's evaluation says about one set of results."""

    figures: Figures
    """`FIGURES`."""
    classes: dict[int, Figures]
    """Category id -> `PER_CLASS`, over objects of all sizes."""
    curves: dict[str, list[float] | None]
    """"mean", "0.50" and "0.75" (IoU) -> precision in percent at each of `RECALLS`, mean over the classes that have
    objects. The mean of a curve is AP, AP50 or AP75."""


def coco_ground_truth(
    images: Sequence[ImageInfo], truths: Sequence[GroundTruth], categories: Sequence[dict[str, Any]]
) -> COCO:
    """The COCO object that the annotation file would give for these images."""
    annotations = [
        {
            "id": int(truth.ids[row]),
            "image_id": info.id,
            "category_id": int(truth.category_ids[row]),
            "bbox": truth.boxes_xywh[row].tolist(),
            "area": float(truth.areas[row]),
            "iscrowd": int(truth.iscrowd[row]),
            "segmentation": rle.as_coco(truth.rles[row], (info.height, info.width)),
        }
        for info, truth in zip(images, truths, strict=True)
        for row in range(len(truth))
    ]
    records = [{"id": i.id, "height": i.height, "width": i.width, "file_name": i.file_name} for i in images]
    return coco_of({"images": records, "annotations": annotations, "categories": list(categories)})


def coco_figures(truth: COCO, results: Sequence[Result], kind: Kind) -> Figures:
    """The twelve figures by name; None where the ground truth has no object of that size.

    Sizes of detections are those of what is compared: box areas for `bbox`, mask areas for `segm`.
    """
    return coco_evaluation(truth, results, kind).figures


def coco_evaluation(truth: COCO, results: Sequence[Result], kind: Kind) -> Evaluation:
    """The figures, each class and the curves; see `coco_figures`."""
    evaluation = _evaluated(truth, results, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU x recall x class
    positions = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
    classes = {
        category_id: {name: _mean(precision[ious, :, row]) for name, ious in positions.items()}
        for row, category_id in enumerate(evaluation.params.catIds)
    }
    present = precision[:, :, (precision > -1).any(axis=(0, 1))]
    curves = {
        name: _curve(present[positions[figure]])
        for name, figure in (("mean", "AP"), ("0.50", "AP50"), ("0.75", "AP75"))
    }
    figures = {name: percent(float(value)) for name, value in zip(FIGURES, evaluation.stats, strict=True)}
    return Evaluation(figures, classes, curves)


def coco_ap(truth: COCO, results: Sequence[Result]) -> float | None:
    """The AP of masks alone, for less than the twelve figures cost."""
    return _mean(_evaluated(truth, results, "segm", only_ap=True).eval["precision"])


def _evaluated(truth: COCO, results: Sequence[Result], kind: Kind, *, only_ap: bool = False) -> COCOeval:
    found = coco_of({**truth.dataset, "annotations": detections(results, kind)})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, found, kind)
        if only_ap:
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
            evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _mean(precision: NDArray[np.float64]) -> float | None:
    """Of all entries that are: pycocotools marks a class without objects by -1."""
    known = precision[precision > -1]
    return percent(float(known.mean())) if known.size else None


def _curve(precision: NDArray[np.float64]) -> list[float] | None:
    """Precision "i r k" -> percent over recall."""
    return [round(100 * float(value), 2) for value in precision.mean(axis=(0, 2))] if precision.size else None


def percent(value: float) -> float | None:
    """A share as it is printed; COCO's -1 is None."""
    return None if value < 0 else round(100 * value, 4)


def detections(results: Sequence[Result], kind: Kind) -> list[dict[str, Any]]:
    """The results as annotations, as `loadRes` makes them; `area` is that of what is compared."""
    return [_detection(number, result, kind) for number, result in enumerate(results, start=1)]


def _detection(number: int, result: Result, kind: str) -> dict[str, Any]:
    annotation = {**result, "id": number, "iscrowd": 0}
    if kind == "bbox":
        annotation["area"] = result["bbox"][2] * result["bbox"][3]
    else:
        annotation["area"] = rle.area(result["segmentation"]["counts"], tuple(result["segmentation"]["size"]))
    return annotation


def coco_of(dataset: Any) -> COCO:
    """COCO reads files only; this is what its constructor and `loadRes` do with the content of a file in memory."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
