"""Point-sampled losses beside Mask2Former's and matching beside Deformable DETR's, both of `transformers`."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.views import resolve
from pipeline.heads.base import HeadOutput
from pipeline.training.assign import hungarian
from pipeline.training.config import TrainConfig
from pipeline.training.criterion import loss_terms
from pipeline.training.losses import bce_loss, dice_loss
from pipeline.training.points import sample_logits, uncertain_points
from pipeline.training.targets import Targets

pytest.importorskip("transformers")
UNHURRIED = settings(deadline=None, max_examples=50)
SEEDS = st.integers(0, 10_000)
R, SIDE = 16, 48
"""Cells of a mask's grid, and pixels of the image, which is the box here."""


def mask2former(points: int, oversample: float = 3.0, importance: float = 0.75) -> Any:
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    config = Mask2FormerConfig(train_num_points=points, oversample_ratio=oversample, importance_sample_ratio=importance)
    return Mask2FormerLoss(config, {})


def framed_logits(m: int, seed: int) -> torch.Tensor:
    """Random, with an outer ring that is surely no object: beyond the outer cell centres Mask2Former mixes in zeros,
    where we continue the outer cells, since the map of a box goes on outside it. Nothing else differs there."""
    logits = torch.randn(m, R, R, generator=torch.Generator().manual_seed(seed)) * 3
    inside = torch.zeros(R, R, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    return torch.where(inside, logits, -1000.0)


def masks(m: int, seed: int) -> torch.Tensor:
    """Rectangles away from the border, uint8 "m SIDE SIDE"."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(m, SIDE, SIDE, dtype=torch.uint8)
    for mask in found:
        x, y = torch.randint(2, SIDE // 2, (2,), generator=generator).tolist()
        w, h = torch.randint(1, SIDE // 2 - 2, (2,), generator=generator).tolist()
        mask[y : y + h, x : x + w] = 1
    return found


def whole_image_targets(truth: torch.Tensor) -> Targets:
    m = len(truth)
    return Targets(
        boxes=[],
        queries=[],
        labels=torch.zeros(m, dtype=torch.int64),
        detected_labels=torch.zeros(m, dtype=torch.int64),
        areas=truth.flatten(1).sum(1).float(),
        box_areas=torch.full((m,), float(SIDE * SIDE)),
        masks=list(truth),
        frames=torch.tensor([0.0, 0.0, SIDE, SIDE], dtype=torch.float64).expand(m, 4),
        views=[resolve("orig", 1, (SIDE, SIDE))] * m,
    )


@UNHURRIED
@given(seed=SEEDS, m=st.integers(1, 6), points=st.integers(1, 40))
def test_terms_at_points_are_mask2formers(seed: int, m: int, points: int) -> None:
    from transformers.models.mask2former import modeling_mask2former as peer

    torch.manual_seed(seed)
    logits, targets = torch.randn(m, points) * 4, torch.rand(m, points)
    assert bce_loss(logits, targets).item() == pytest.approx(
        peer.sigmoid_cross_entropy_loss(logits, targets, m).item(), rel=1e-5
    )
    assert dice_loss(logits, targets).item() == pytest.approx(peer.dice_loss(logits, targets, m).item(), rel=1e-5)


@UNHURRIED
@given(seed=SEEDS)
def test_logits_between_the_cell_centres_are_mask2formers(seed: int) -> None:
    from transformers.models.mask2former.modeling_mask2former import sample_point

    torch.manual_seed(seed)
    logits, points = torch.randn(2, R, R), (0.5 + torch.rand(2, 30, 2) * (R - 1)) / R
    peer = sample_point(logits[:, None], points, align_corners=False)[:, 0]
    torch.testing.assert_close(sample_logits(logits, points), peer)


@pytest.mark.parametrize(("count", "oversample", "importance"), [(64, 3.0, 0.75), (50, 2.0, 0.5), (40, 3.0, 1.0)])
@UNHURRIED
@given(seed=SEEDS)
def test_the_points_are_those_that_mask2former_draws(
    seed: int, count: int, oversample: float, importance: float
) -> None:
    logits = framed_logits(3, seed)
    torch.manual_seed(seed)
    loss = mask2former(count, oversample, importance)
    peer = loss.sample_points_using_uncertainty(
        logits[:, None], loss.calculate_uncertainty, count, oversample, importance
    )
    ours = uncertain_points(logits, count, oversample, importance, torch.Generator().manual_seed(seed))
    for mine, other in zip(ours, peer, strict=True):  # their order is of no matter
        assert sorted(mine.tolist()) == sorted(other.tolist())


@UNHURRIED
@given(seed=SEEDS, m=st.integers(1, 4))
def test_the_whole_loss_is_mask2formers_where_the_box_is_the_image(seed: int, m: int) -> None:
    logits, truth = framed_logits(m, seed).requires_grad_(), masks(m, seed)
    config = TrainConfig(steps=1)
    ours = loss_terms(HeadOutput(logits), whole_image_targets(truth), config, torch.Generator().manual_seed(seed))
    gradient = torch.autograd.grad(ours["bce"] + ours["dice"], logits)[0]
    torch.manual_seed(seed)
    every = torch.arange(m)
    peer = mask2former(int(config.points * (2 * R) ** 2)).loss_masks(logits[None], [truth.float()], [(every, every)], m)
    assert ours["bce"].item() == pytest.approx(5 * peer["loss_mask"].item(), rel=1e-4)
    assert ours["dice"].item() == pytest.approx(5 * peer["loss_dice"].item(), rel=1e-4)
    expected = torch.autograd.grad(5 * peer["loss_mask"] + 5 * peer["loss_dice"], logits)[0]
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(gradient[inner], expected[inner], rtol=1e-4, atol=1e-6)


@UNHURRIED
@given(
    seed=SEEDS,
    n=st.integers(1, 20),
    k=st.integers(1, 8),
    weights=st.sampled_from([(2.0, 5.0, 2.0), (1.0, 0.0, 0.0), (4.0, 1.0, 0.5)]),
)
def test_matching_is_deformable_detrs(seed: int, n: int, k: int, weights: tuple[float, float, float]) -> None:
    """A detection that the cache holds has one label: to the other classes its probability is zero."""
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

    torch.manual_seed(seed)
    boxes, truth_boxes = (torch.cat([torch.rand(c, 2), 0.05 + 0.4 * torch.rand(c, 2)], dim=1) for c in (n, k))
    labels, truth_labels, scores = torch.randint(4, (n,)), torch.randint(4, (k,)), 0.01 + 0.98 * torch.rand(n)
    logits = torch.full((1, n, 4), -float("inf"))
    logits[0, torch.arange(n), labels] = scores.logit()
    costs = {"cost_class": weights[0], "cost_bbox": weights[1], "cost_giou": weights[2]}
    matcher = DeformableDetrHungarianMatcher(class_cost=weights[0], bbox_cost=weights[1], giou_cost=weights[2])
    target = {"class_labels": truth_labels, "boxes": truth_boxes}
    ((rows, columns),) = matcher({"logits": logits, "pred_boxes": boxes[None]}, [target])
    ours = hungarian(boxes, scores, labels, truth_boxes, truth_labels, **costs)
    assert sorted(ours.tolist()) == sorted(torch.stack([rows, columns], dim=1).tolist())
