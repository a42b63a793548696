"""Hand-made errors whose AP, and whose AP without them, is known."""

from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from featcache import GroundTruth, ImageInfo
from pipeline.masks import rle
from pipeline.masks.coco_eval import coco_ground_truth
from pipeline.masks.lost_ap import find_errors, lost_ap

HW = (100, 100)
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}]
Box = tuple[int, int, int, int]
LEFT, RIGHT, BELOW = (0, 0, 40, 40), (60, 0, 40, 40), (0, 60, 40, 40)


def filled(box: Box) -> bytes:
    x, y, w, h = box
    mask = np.zeros(HW, dtype=bool)
    mask[y : y + h, x : x + w] = True
    return rle.encode(mask)


def truth(*objects: tuple[int, Box], crowds: int = 0) -> COCO:
    """One image of (category id, square) objects, the last `crowds` of them crowds."""
    k = len(objects)
    boxes, counts = np.array([box for _, box in objects], dtype=float), [filled(box) for _, box in objects]
    crowd = np.arange(k) >= k - crowds
    classes = np.array([one for one, _ in objects])
    gt = GroundTruth(np.arange(k) + 1, classes, boxes, boxes[:, 2] * boxes[:, 3], crowd, counts)
    return coco_ground_truth([ImageInfo(7, *HW, "7.png")], [gt], CATEGORIES)


def detections(*found: tuple[int, Box, float, Box]) -> tuple[list[Any], list[Any]]:
    """(category id, box, score, square that the mask fills) -> results and boxes."""
    common = [{"image_id": 7, "category_id": label, "score": score} for label, _, score, _ in found]
    masks = [{"size": list(HW), "counts": filled(mask).decode()} for *_, mask in found]
    results = [{**one, "segmentation": mask} for one, mask in zip(common, masks, strict=True)]
    return results, [{**one, "bbox": [*box]} for one, (_, box, _, _) in zip(common, found, strict=True)]


def test_a_perfect_answer_loses_nothing() -> None:
    found = detections((1, LEFT, 0.9, LEFT), (4, RIGHT, 0.8, RIGHT))
    left = lost_ap(truth((1, LEFT), (4, RIGHT)), *found)
    assert left == dict.fromkeys(("AP", "missed", "wrong_class", "false", "loose_mask"), 100)


def test_a_loose_mask() -> None:
    """26 of 40 rows: a mask IoU of 0.65, right at four of ten thresholds."""
    left = lost_ap(truth((1, LEFT)), *detections((1, LEFT, 0.9, (0, 0, 40, 26))))
    assert left == {"AP": 40, "missed": 40, "wrong_class": 40, "false": 40, "loose_mask": 100}


def test_a_missed_object() -> None:
    """One of two: precision 1 up to a recall of 0.5, which is 51 of COCO's 101 points."""
    left = lost_ap(truth((1, LEFT), (1, RIGHT)), *detections((1, LEFT, 0.9, LEFT)))
    half = pytest.approx(100 * 51 / 101, abs=1e-4)
    assert left == {"AP": half, "missed": 100, "wrong_class": half, "false": half, "loose_mask": half}


def test_an_object_that_only_a_wrong_class_finds_is_not_missed() -> None:
    left = lost_ap(truth((1, LEFT), (4, RIGHT)), *detections((1, LEFT, 0.9, LEFT), (1, RIGHT, 0.8, RIGHT)))
    assert left == {"AP": 50, "missed": 50, "wrong_class": 100, "false": 50, "loose_mask": 50}


def test_a_wrong_class_goes_where_the_right_one_is_there_too() -> None:
    """It scores best, so precision is one half until it is gone."""
    answer = detections((4, LEFT, 0.9, LEFT), (1, LEFT, 0.5, LEFT), (4, RIGHT, 0.4, RIGHT))
    left = lost_ap(truth((1, LEFT), (4, RIGHT)), *answer)
    assert left["AP"] == pytest.approx(75)
    assert left["wrong_class"] == 100
    assert find_errors(truth((1, LEFT), (4, RIGHT)), *answer).right_class == {0: None}
    assert left["missed"] == left["false"] == left["loose_mask"] == left["AP"]


def test_false_detections_are_duplicates_and_those_on_nothing() -> None:
    answer = detections((1, LEFT, 0.9, LEFT), (1, LEFT, 0.8, LEFT), (1, BELOW, 0.7, BELOW), (1, RIGHT, 0.6, RIGHT))
    objects = truth((1, LEFT), (1, RIGHT))
    left = lost_ap(objects, *answer)
    # precision 1 at the first 51 points, 2 of 4 at the other 50
    assert left["AP"] == pytest.approx(100 * (51 + 50 * 0.5) / 101, abs=1e-4)
    assert left["false"] == 100
    assert find_errors(objects, *answer).false == {1, 2}


def test_the_best_score_claims_first_and_each_object_once() -> None:
    answer = detections((1, (0, 0, 40, 36), 0.3, LEFT), (1, LEFT, 0.9, (0, 0, 40, 10)))
    errors = find_errors(truth((1, LEFT)), *answer)
    assert set(errors.masks) == {1}
    assert errors.false == {0}


def test_a_mask_can_fit_where_the_box_does_not() -> None:
    answer = detections((1, (0, 0, 90, 90), 0.9, LEFT))
    errors = find_errors(truth((1, LEFT)), *answer)
    assert not errors.missed
    assert set(errors.masks) == {0}


def test_crowds_are_no_objects() -> None:
    """They are neither missed nor claimed; what lies on them costs nothing before or after."""
    objects = truth((1, LEFT), (1, RIGHT), crowds=1)
    answer = detections((1, LEFT, 0.9, LEFT), (1, RIGHT, 0.95, RIGHT))
    errors = find_errors(objects, *answer)
    assert not errors.missed
    assert set(errors.masks) == {0}
    assert set(lost_ap(objects, *answer).values()) == {100}


def test_images_and_answers_that_are_empty() -> None:
    assert lost_ap(truth((1, LEFT)), [], []) == {
        "AP": 0, "missed": None, "wrong_class": 0, "false": 0, "loose_mask": 0,
    }  # fmt: skip
    nothing = coco_ground_truth([ImageInfo(7, *HW, "7.png")], [GroundTruth.none()], CATEGORIES)
    assert set(lost_ap(nothing, *detections((1, LEFT, 0.9, LEFT))).values()) == {None}
