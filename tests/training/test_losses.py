"""Losses on values worked out by hand."""

import math

import pytest
import torch

from pipeline.training.losses import bce_loss, dice_loss, mask_iou, scoring_loss

NONE = torch.zeros(0, 4, requires_grad=True)


def test_bce_by_hand() -> None:
    logits, targets = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert bce_loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_dice_by_hand() -> None:
    logits, targets = torch.tensor([[0.0, 0.0], [50.0, -50.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # first mask: p = 1/2, 1/2 -> 1 - (2 * 0.5 + 1) / (1 + 1 + 1); second: perfect, 1 - 3 / 3
    assert dice_loss(logits, targets).item() == pytest.approx((1 / 3 + 0) / 2, abs=1e-6)


def test_mask_iou_counts_what_the_box_cuts_off() -> None:
    logits = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    # box of 40 pixels, 10 a cell: predicted 20, shared 10; the object has 60 pixels, 40 of them outside the box
    found = mask_iou(logits, targets, torch.tensor([40.0]), torch.tensor([60.0]))
    assert found.item() == pytest.approx(10 / (20 + 60 - 10))
    empty = mask_iou(-torch.ones(1, 4), torch.zeros(1, 4), torch.tensor([40.0]), torch.tensor([0.0]))
    assert empty.item() == 0


def test_scoring_looks_at_the_class_of_the_object_only() -> None:
    iou = torch.tensor([[9.0, 0.5, 9.0]])
    assert scoring_loss(iou, torch.tensor([0.8]), torch.tensor([1])).item() == pytest.approx(0.09, rel=1e-5)


def test_no_masks_give_zero_with_a_gradient() -> None:
    labels = torch.zeros(0, dtype=torch.int64)
    for loss in (bce_loss(NONE, NONE), dice_loss(NONE, NONE), scoring_loss(NONE, torch.zeros(0), labels)):
        assert loss.item() == 0
        loss.backward()
