"""Matching on hand-made cases."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.transforms import cxcywh_to_xyxy
from pipeline.training.assign import focal_cost, hungarian, jitter, overlap, sample_pairs

TRUTH = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.3, 0.3]])
LABELS = torch.tensor([4, 9])
COSTS = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}


def test_hungarian_finds_the_boxes_on_the_objects() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.9, 0.9], [0.7, 0.7, 0.3, 0.3], [0.31, 0.3, 0.2, 0.2]])
    pairs = hungarian(boxes, torch.full((3,), 0.5), torch.tensor([4, 9, 4]), TRUTH, LABELS, **COSTS)
    assert sorted(pairs.tolist()) == [[1, 1], [2, 0]]


def test_hungarian_prefers_the_right_class_among_equal_boxes() -> None:
    boxes = TRUTH[:1].repeat(2, 1)
    pairs = hungarian(boxes, torch.tensor([0.9, 0.4]), torch.tensor([8, 4]), TRUTH[:1], LABELS[:1], **COSTS)
    assert pairs.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        ({"cost_class": 1.0, "cost_bbox": 0.0, "cost_giou": 0.0}, 0),
        ({"cost_class": 0.0, "cost_bbox": 1.0, "cost_giou": 0.0}, 1),
        ({"cost_class": 0.0, "cost_bbox": 0.0, "cost_giou": 1.0}, 2),
    ],
)
def test_each_cost_alone_decides(costs: dict[str, float], chosen: int) -> None:
    """Of a small object: a far box of its class, one of the same centre much too small, a large one that holds it."""
    truth = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    boxes = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.02, 0.02], [0.5, 0.5, 0.2, 0.2]])
    pairs = hungarian(boxes, torch.full((3,), 0.9), torch.tensor([4, 9, 9]), truth, LABELS[:1], **costs)
    assert pairs.tolist() == [[chosen, 0]]


def test_focal_cost_by_hand() -> None:
    # 0.25 * 0.5^2 * ln 2 - 0.75 * 0.5^2 * ln 2
    assert focal_cost(torch.tensor([0.5])).item() == pytest.approx(-0.5 * 0.25 * 0.693147, abs=1e-5)


def test_overlap_takes_each_box_on_an_object_and_no_other() -> None:
    boxes = torch.cat([TRUTH, TRUTH + torch.tensor([0.02, 0.0, 0.0, 0.0]), torch.tensor([[0.1, 0.9, 0.1, 0.1]])])
    assert overlap(boxes, TRUTH, 0.5).tolist() == [[0, 0], [1, 1], [2, 0], [3, 1]]
    assert overlap(boxes, TRUTH, 0.99).tolist() == [[0, 0], [1, 1]]


def test_no_truth_or_no_detection_gives_no_pair() -> None:
    none, empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert hungarian(TRUTH, torch.ones(2), LABELS, none, empty, **COSTS).shape == (0, 2)
    assert hungarian(none, torch.zeros(0), empty, TRUTH, LABELS, **COSTS).shape == (0, 2)
    assert overlap(none, TRUTH, 0.5).shape == overlap(TRUTH, none, 0.5).shape == (0, 2)


def test_sampling_gives_rare_objects_their_share() -> None:
    pairs = torch.cat([torch.tensor([[n, 0] for n in range(90)]), torch.tensor([[n, 1] for n in range(90, 100)])])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([sample_pairs(pairs, 4, generator) for _ in range(500)])
    assert 0.4 < (drawn[:, 1] == 1).float().mean().item() < 0.6
    assert torch.equal(sample_pairs(pairs, 100, generator), pairs)


@given(st.floats(0.01, 0.5), st.integers(0, 10_000))
def test_jitter_moves_edges_within_its_bound_and_the_image(amount: float, seed: int) -> None:
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.1], [0.5, 0.5, 1.0, 1.0]])
    moved = jitter(boxes, amount, torch.Generator().manual_seed(seed))
    edges, before = cxcywh_to_xyxy(moved), cxcywh_to_xyxy(boxes)
    assert ((edges - before).abs() <= amount * boxes[:, 2:].repeat(1, 2) + 1e-6).all()
    assert (edges >= -1e-6).all()
    assert (edges <= 1 + 1e-6).all()
    assert jitter(boxes, 0.0, torch.Generator()) is boxes
