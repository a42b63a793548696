import numpy as np
import pytest
import torch

from featcache import GroundTruth
from pipeline.masks import rle
from pipeline.masks.matching import in_box_iou, match_boxes

LABELS = torch.tensor([0, 0, 1])


def truth_of(boxes_xywh: list[list[float]], crowd: list[bool]) -> GroundTruth:
    k = len(boxes_xywh)
    boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        np.arange(k), np.zeros(k, dtype=np.int64), boxes, boxes[:, 2], np.array(crowd, dtype=bool), [b""] * k
    )


def test_the_best_score_chooses_first_and_each_truth_is_taken_once() -> None:
    truth = truth_of([[0, 0, 10, 10], [20, 0, 10, 10]], [False, False])
    boxes = torch.tensor([[0.0, 0, 10, 8], [0, 0, 10, 10], [20, 0, 30, 10]])
    assert match_boxes(boxes, torch.tensor([0, 0, 0]), truth, torch.tensor([0, 0])) == [(0, 0), (2, 1)]


def test_class_overlap_and_crowds_count() -> None:
    truth = truth_of([[0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10]], [False, False, True])
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 24, 10], [40, 0, 50, 10]])
    assert match_boxes(boxes, torch.tensor([1, 0, 0]), truth, torch.tensor([0, 0, 0])) == []
    assert match_boxes(boxes, torch.tensor([0, 0, 0]), truth, torch.tensor([0, 0, 0]), threshold=0.4) == [
        (0, 0),
        (1, 1),
    ]


def test_nothing_to_match() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert match_boxes(torch.rand(3, 4), LABELS, truth_of([], []), none) == []
    assert match_boxes(torch.zeros(0, 4), none, truth_of([[0, 0, 1, 1]], [False]), torch.tensor([0])) == []


def test_only_the_part_of_the_truth_in_the_box_counts() -> None:
    mask, truth, box = (np.zeros((10, 10), dtype=bool) for _ in range(3))
    truth[:, :6] = True
    box[:, :4] = True
    mask[:, :3] = True
    assert in_box_iou(rle.encode(mask), rle.encode(truth), rle.encode(box), (10, 10)) == pytest.approx(0.75)
