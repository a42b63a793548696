"""Where mask AP is lost: the AP left when one kind of error is made perfect and everything else stays as it is.

As TIDE does it (Bolya et al. 2020), with the kinds that matter to masks on frozen boxes. A detection fits an object
where their boxes or their masks have an IoU of at least 0.5. Best score first, each detection claims the free object of
its class that it fits best, if any. Crowd regions are no objects.

- `missed`: an object that no detection of any class fits. Perfect: such objects are not asked for.
- `wrong_class`: a detection that fits objects of other classes only. Perfect: it takes the class of the object it fits
  best among those that nobody has claimed, best score first; without any it goes.
- `false`: any other detection that claims nothing, on no object or on one that has its detection. Perfect: it goes.
- `loose_mask`: a detection that claims an object. Perfect: its mask is that of the object.

`missed`, `wrong_class` and `false` are errors of the detector, `loose_mask` is what a better mask head could gain. The
gains do not add up to 100 - AP: one error hides another. Scores stay as they are.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from .coco_eval import coco_ap, coco_of
from .results import Result

KINDS = ("missed", "wrong_class", "false", "loose_mask")
FITS = 0.5
"""Least IoU."""

Matrix = NDArray[np.float64]


@dataclass
class Errors:
    """What would change for each kind of error. A position is that of a detection among the results."""

    missed: set[int] = field(default_factory=set[int])
    """Ids of objects not to ask for."""
    right_class: dict[int, int | None] = field(default_factory=dict[int, int | None])
    """Position -> category id, None where it goes."""
    false: set[int] = field(default_factory=set[int])
    """Positions of detections that go."""
    masks: dict[int, Any] = field(default_factory=dict[int, Any])
    """Position -> the mask of its object."""


def lost_ap(truth: COCO, results: Sequence[Result], boxes: Sequence[Result]) -> dict[str, float | None]:
    """AP of the masks in percent as it is (`AP`), and with each of `KINDS` made perfect.

    results: with `segmentation`. boxes: the detections of these results, in their order, with `bbox`. None where no
    object is left.
    """
    errors = find_errors(truth, results, boxes)
    asked = [a for a in truth.dataset["annotations"] if a["id"] not in errors.missed]
    classes = [errors.right_class.get(n, result["category_id"]) for n, result in enumerate(results)]
    renamed = [{**r, "category_id": one} for r, one in zip(results, classes, strict=True) if one is not None]
    true = [result for n, result in enumerate(results) if n not in errors.false]
    tight = [{**r, "segmentation": errors.masks.get(n, r["segmentation"])} for n, r in enumerate(results)]
    return {
        "AP": coco_ap(truth, results),
        "missed": coco_ap(coco_of({**truth.dataset, "annotations": asked}), results),
        "wrong_class": coco_ap(truth, renamed),
        "false": coco_ap(truth, true),
        "loose_mask": coco_ap(truth, tight),
    }


def find_errors(truth: COCO, results: Sequence[Result], boxes: Sequence[Result]) -> Errors:
    """Every error of the results; arguments as of `lost_ap`."""
    by_image: dict[int, list[int]] = defaultdict(list)
    for position, result in enumerate(results):
        by_image[result["image_id"]].append(position)
    errors = Errors()
    for image in truth.dataset["images"]:
        objects = [one for one in truth.imgToAnns.get(image["id"], []) if not one["iscrowd"]]
        order = sorted(by_image[image["id"]], key=lambda position: -results[position]["score"])
        _add_errors(errors, objects, order, [results[n] for n in order], [boxes[n]["bbox"] for n in order])
    return errors


def _add_errors(
    errors: Errors, objects: list[Any], positions: list[int], results: list[Result], boxes: list[Any]
) -> None:
    """Those of one image; its detections come best score first, and so do the rows below."""
    if not objects or not results:
        errors.false.update(positions)
        errors.missed.update(one["id"] for one in objects)
        return
    fit = _fit(objects, results, boxes)
    errors.missed.update(one["id"] for k, one in enumerate(objects) if not fit[:, k].any())
    classes = np.array([one["category_id"] for one in objects])
    own = fit * (np.array([result["category_id"] for result in results])[:, None] == classes)
    free = np.ones(len(objects), dtype=bool)
    claimed = dict(_claims(own, range(len(results)), free))
    confused = [row for row in range(len(results)) if fit[row].any() and not own[row].any()]
    right = dict(_claims(fit, confused, free))
    for row, position in enumerate(positions):
        if row in claimed:
            errors.masks[position] = objects[claimed[row]]["segmentation"]
        elif row in confused:
            errors.right_class[position] = int(classes[right[row]]) if row in right else None
        else:
            errors.false.add(position)


def _claims(fit: Matrix, rows: Sequence[int], free: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(row, column) of the best free column of each of the rows that has one; `free` is kept up to date."""
    for row in rows:
        values = fit[row] * free
        best = int(values.argmax())
        if values[best] > 0:
            free[best] = False
            yield row, best


def _fit(objects: list[Any], results: list[Result], boxes: list[Any]) -> Matrix:
    """IoU of the boxes, or of the masks where that is more; 0 where it is less than `FITS`. "n k" """
    none = [0] * len(objects)
    by_box = coco_mask.iou(np.array(boxes, dtype=float), np.array([o["bbox"] for o in objects], dtype=float), none)
    by_mask = coco_mask.iou([r["segmentation"] for r in results], [o["segmentation"] for o in objects], none)
    fit = np.maximum(by_box, by_mask)
    return np.where(fit >= FITS, fit, 0.0)
