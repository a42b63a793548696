import numpy as np
import torch

from featcache import GroundTruth
from pipeline.data.transforms import original_to_view
from pipeline.masks import rle
from pipeline.masks.paste import paste
from pipeline.masks.references import box_logits, oracle_logits

HW = (32, 48)


def two_masks() -> tuple[np.ndarray, np.ndarray, GroundTruth]:
    """A disc-like blob of class 0 and a bar of class 1."""
    y, x = np.mgrid[: HW[0], : HW[1]]
    blob, bar = (x - 14) ** 2 + (y - 14) ** 2 < 64, np.zeros(HW, dtype=bool)
    bar[4:28, 32:40] = True
    counts = [rle.encode(blob), rle.encode(bar)]
    boxes = np.array([rle.box_xywh(c, HW) for c in counts])
    truth = GroundTruth(np.arange(2), np.array([1, 3]), boxes, boxes[:, 2], np.zeros(2, dtype=bool), counts)
    return blob, bar, truth


def test_the_box_is_filled() -> None:
    boxes = torch.tensor([[10.0, 5, 20, 25]])
    (counts,) = paste(box_logits(boxes), original_to_view(boxes, HW), HW)
    assert rle.area(counts, HW) == 200


def test_the_oracle_takes_the_best_box_of_its_class_and_cuts_the_mask_to_the_box() -> None:
    blob, bar, truth = two_masks()
    boxes = torch.tensor([[6.0, 6, 23, 23], [30.0, 4, 40, 12], [6.0, 6, 23, 23]], dtype=torch.float64)
    labels, truth_labels = torch.tensor([0, 1, 1]), torch.tensor([0, 1])
    logits = oracle_logits(boxes, labels, truth, truth_labels, HW)
    whole, cut, other = (rle.decode(counts, HW) for counts in paste(logits, original_to_view(boxes, HW), HW))
    assert rle.iou(rle.encode(whole), rle.encode(blob), HW) > 0.97
    assert np.array_equal(cut[4:12], bar[4:12])
    assert not cut[12:].any()
    assert not other.any()  # the bar does not touch that box


def test_without_truth_or_with_crowds_only_the_oracle_is_empty() -> None:
    _, _, truth = two_masks()
    boxes, labels = torch.tensor([[6.0, 6, 23, 23]]), torch.tensor([0])
    crowds = GroundTruth(
        truth.ids, truth.category_ids, truth.boxes_xywh, truth.areas, np.ones(2, dtype=bool), truth.rles
    )
    assert (oracle_logits(boxes, labels, crowds, torch.tensor([0, 1]), HW) < 0).all()
    assert (oracle_logits(boxes, labels, GroundTruth.none(), torch.zeros(0), HW) < 0).all()
