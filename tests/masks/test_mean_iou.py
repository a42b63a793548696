"""mIoU and its companions beside torchmetrics."""

import numpy as np
import pytest
import torch

from pipeline.masks.mean_iou import MeanIoU


def test_figures_are_those_of_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    rng, score = np.random.default_rng(0), MeanIoU(6)
    truths = rng.integers(-1, 5, (4, 20, 30))  # class 5 is nowhere
    founds = np.where(rng.random(truths.shape) < 0.6, truths.clip(min=0), rng.integers(0, 5, truths.shape))
    for truth, found in zip(truths, founds, strict=True):
        score.add(truth, found.astype(np.int16))
    told, wanted = torch.from_numpy(founds), torch.from_numpy(truths)
    ious = functional.multiclass_jaccard_index(told, wanted, 6, average=None, ignore_index=-1)[:5]
    recalls = functional.multiclass_accuracy(told, wanted, 6, average=None, ignore_index=-1)[:5]
    pixels = functional.multiclass_accuracy(told, wanted, 6, average="micro", ignore_index=-1)
    share = torch.from_numpy(np.bincount(truths[truths >= 0], minlength=5) / (truths >= 0).sum())
    assert score.figures() == pytest.approx(
        {
            "mIoU": 100 * ious.mean().item(),
            "fwIoU": 100 * (ious * share).sum().item(),
            "mACC": 100 * recalls.mean().item(),
            "pACC": 100 * pixels.item(),
        },
        abs=1e-3,
    )
    assert score.classes()[:5] == pytest.approx((100 * ious).tolist(), abs=1e-3)
    assert score.classes()[5] is None


def test_a_pixel_without_answer_is_wrong_and_of_no_class() -> None:
    score = MeanIoU(2)
    score.add(np.array([[0, 0, 1, -1]]), np.array([[0, -1, 1, 1]]))
    assert score.figures() == {"mIoU": 75.0, "fwIoU": 66.6667, "mACC": 75.0, "pACC": 66.6667}
    assert set(MeanIoU(2).figures().values()) == {None}
