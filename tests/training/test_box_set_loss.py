"""Mask DINO's loss beside pieces of `transformers` that are the same mathematics, and on answers made by hand."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_set_loss import objects_from, objects_of, same_points_for_all
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from pipeline.data.transforms import cxcywh_to_xyxy
from pipeline.heads.mask_dino.denoising import denoising_queries
from pipeline.heads.mask_dino.prediction import LayerPrediction, Predictions
from pipeline.training.box_set_loss import BoxSetLoss
from pipeline.training.mask_terms import MaskTerms
from pipeline.training.view_objects import ViewObjects

CLASSES, SIDE, GRID = 4, (24, 32), (6, 8)
POINTS = 40
LOSS = BoxSetLoss(4.0, 5.0, 2.0, MaskTerms(5.0, 5.0, points=POINTS, oversample=3.0, importance=0.75))
WEIGHTS = {"class": 4.0, "l1": 5.0, "giou": 2.0, "bce": 5.0, "dice": 5.0}
Pairs = list[tuple[Tensor, Tensor]]


def prediction_of(images: int, queries: int, seed: int, *, masks: bool = True) -> LayerPrediction:
    generator = torch.Generator().manual_seed(seed)
    return LayerPrediction(
        (torch.randn(images, queries, CLASSES, generator=generator) * 2).requires_grad_(),
        (torch.rand(images, queries, 4, generator=generator) * 0.5 + 0.2).requires_grad_(),
        (torch.randn(images, queries, *GRID, generator=generator) * 3).requires_grad_() if masks else None,
    )


def all_of(images: int, queries: int, denoising: int, seed: int) -> Predictions:
    """Two layers with masks, a first selection with more tokens, one interaction without masks."""
    return Predictions(
        layers=(prediction_of(images, queries, seed), prediction_of(images, queries, seed + 1)),
        selected=prediction_of(images, queries + 2, seed + 2),
        interaction=(prediction_of(images, queries + 2, seed + 3, masks=False),),
        denoised=(prediction_of(images, denoising, seed + 4),) if denoising else (),
    )


def leaves(predictions: Predictions) -> list[Tensor]:
    every = [*predictions.layers, predictions.selected, *predictions.interaction, *predictions.denoised]
    return [t for one in every for t in (one.class_logits, one.boxes, one.mask_logits) if t is not None]


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def peer_terms(one: LayerPrediction, objects: list[ViewObjects], pairs: Pairs, count: float) -> dict[str, Tensor]:
    """By `transformers`: Deformable DETR's class and boxes, Mask2Former's masks."""
    from transformers import Mask2FormerConfig
    from transformers.loss.loss_deformable_detr import DeformableDetrImageLoss
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    boxes = DeformableDetrImageLoss(None, CLASSES, 0.25, [])
    outputs = {"logits": one.class_logits, "pred_boxes": one.boxes}
    targets = [{"class_labels": own.labels, "boxes": own.boxes} for own in objects]
    found = boxes.loss_labels(outputs, targets, pairs, count) | boxes.loss_boxes(outputs, targets, pairs, count)
    terms = {"class": found["loss_ce"], "l1": found["loss_bbox"], "giou": found["loss_giou"]}
    if one.mask_logits is not None:
        settings: Any = {"train_num_points": POINTS, "num_labels": CLASSES}
        masks = Mask2FormerLoss(Mask2FormerConfig(**settings), {})
        truth: Any = [own.masks.float() for own in objects]
        found = masks.loss_masks(one.mask_logits, truth, pairs, count)  # pyright: ignore[reportArgumentType]
        terms |= {"bce": found["loss_mask"], "dice": found["loss_dice"]}
    return {name: WEIGHTS[name] * term for name, term in terms.items()}


def peer_pairs(one: LayerPrediction, objects: list[ViewObjects]) -> Pairs:
    """The best of all assignments, tried one by one; the costs are the losses of the pairs."""
    return [best_by_trial(one, row, own) for row, own in enumerate(objects)]


@torch.no_grad()
def best_by_trial(one: LayerPrediction, row: int, own: ViewObjects) -> tuple[Tensor, Tensor]:
    from transformers.models.mask2former.modeling_mask2former import (
        pair_wise_dice_loss,
        pair_wise_sigmoid_cross_entropy_loss,
        sample_point,
    )

    logits, boxes = one.class_logits[row], one.boxes[row]
    focal = [sigmoid_focal_loss(logits, torch.full_like(logits, is_it)) for is_it in (1.0, 0.0)]
    cost = 4 * (focal[0] - focal[1])[:, own.labels] + 5 * (boxes[:, None] - own.boxes).abs().sum(-1)
    cost -= 2 * generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(own.boxes))
    if one.mask_logits is not None and len(own):
        points = same_points_for_all((POINTS, 2))[None]
        at = [
            sample_point(maps[:, None], points.expand(len(maps), -1, -1), align_corners=False)[:, 0]
            for maps in (one.mask_logits[row], own.masks.float())
        ]
        cost += 5 * pair_wise_sigmoid_cross_entropy_loss(*at) + 5 * pair_wise_dice_loss(*at)
    n, k = cost.shape
    best = min(itertools.permutations(range(n), k), key=lambda rows: sum(cost[q, i].item() for i, q in enumerate(rows)))
    return torch.tensor(best, dtype=torch.int64), torch.arange(k)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labels", [[[1, 3], [0, 0, 2]], [[2], []]])
def test_the_loss_is_that_of_its_pieces_in_transformers(
    monkeypatch: pytest.MonkeyPatch, labels: list[list[int]], seed: int
) -> None:
    """Terms and gradients; also with an image without objects, whose denoising queries are all filling."""
    pytest.importorskip("transformers")
    objects = [objects_of(own, SIDE, seed + row) for row, own in enumerate(labels)]
    denoising = denoising_queries(objects, nn.Embedding(CLASSES, 8), queries=7, noise=0.0, generator=torch.Generator())
    assert denoising is not None
    monkeypatch.setattr(torch, "rand", same_points_for_all)
    predictions = all_of(len(labels), 5, denoising.content.shape[1], seed)
    found = LOSS.terms(predictions, objects, denoising, torch.Generator())

    count = sum(map(len, labels))
    layers = [peer_terms(one, objects, peer_pairs(one, objects), count) for one in predictions.layers]
    expected = {name: torch.stack([terms[name] for terms in layers]).sum() for name in WEIGHTS}
    first, (second,), (noisy,) = predictions.selected, predictions.interaction, predictions.denoised
    expected["selected"] = total(peer_terms(first, objects, peer_pairs(first, objects), count))
    expected["interaction"] = total(peer_terms(second, objects, peer_pairs(second, objects), count))
    known = [(own[:, 0], own[:, 1]) for own in denoising.pairs]
    expected["denoising"] = total(peer_terms(noisy, objects, known, count * denoising.groups))
    assert found.keys() == expected.keys()
    for name, term in found.items():
        torch.testing.assert_close(term, expected[name], atol=1e-4, rtol=1e-5)
    gradients = [torch.autograd.grad(total(terms), leaves(predictions)) for terms in (found, expected)]
    for mine, own in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, own, atol=1e-4, rtol=1e-4)


def right_answer(objects: ViewObjects, queries: int) -> LayerPrediction:
    """Query k names object k, all other queries nothing."""
    k = len(objects)
    sure = torch.full((1, queries, CLASSES), -20.0)
    sure[0, torch.arange(k), objects.labels] = 20
    boxes = torch.cat([objects.boxes, torch.full((queries - k, 4), 0.1)])[None]
    masks = torch.cat([objects.masks.float(), torch.zeros(queries - k, *SIDE)])[None]
    return LayerPrediction(sure, boxes, masks * 16 - 8)


def two_objects() -> ViewObjects:
    masks = torch.zeros(2, *SIDE, dtype=torch.uint8)
    masks[0, 4:16, 2:18], masks[1, 10:22, 14:30] = 1, 1
    return objects_from([1, 3], masks)


def some(objects: ViewObjects, rows: list[int]) -> ViewObjects:
    return replace(objects, labels=objects.labels[rows], boxes=objects.boxes[rows], masks=objects.masks[rows])


def test_a_right_answer_costs_almost_nothing_and_each_mistake_shows_in_its_term() -> None:
    own = two_objects()
    # not at edges, where all is half
    loss = BoxSetLoss(4.0, 5.0, 2.0, MaskTerms(5.0, 5.0, points=400, oversample=3.0, importance=0.0))

    def terms(one: LayerPrediction) -> dict[str, float]:
        found = loss.terms(Predictions((one,), selected=one), [own], None, torch.Generator().manual_seed(0))
        return {name: term.item() for name, term in found.items()}

    right = right_answer(own, 3)
    good = terms(right)
    assert max(good["class"], good["l1"], good["giou"], good["denoising"]) < 1e-5
    assert sum(good.values()) < 1.5  # points between two pixels are neither
    turned = right.class_logits.roll(1, dims=2)
    assert terms(replace(right, class_logits=turned))["class"] > 10
    moved = right.boxes.clone()
    moved[0, 0, 0] += 0.1
    assert terms(replace(right, boxes=moved))["l1"] == pytest.approx(5 * 0.1 / 2, rel=1e-3)
    assert right.mask_logits is not None
    assert terms(replace(right, mask_logits=right.mask_logits.flip(3)))["dice"] > 10 * good["dice"]
    swapped = LayerPrediction(*(t.flip(1) for t in (right.class_logits, right.boxes, right.mask_logits)))
    assert sum(terms(swapped).values()) < 1.5  # the order of queries is of no matter


def test_each_of_class_box_and_mask_can_decide_a_match() -> None:
    """Two queries that differ in one thing alone: the better one is told that it is the object, and the other not."""
    own = some(two_objects(), [0])
    right = right_answer(own, 1)
    assert right.mask_logits is not None
    worse = [
        replace(right, class_logits=right.class_logits.roll(1, dims=2)),
        replace(right, boxes=right.boxes + 0.2),
        replace(right, mask_logits=right.mask_logits.flip(3)),
    ]
    for other in worse:
        both = [
            torch.cat([getattr(other, name), getattr(right, name)], dim=1)
            for name in ("class_logits", "boxes", "mask_logits")
        ]
        logits = both[0].requires_grad_()
        prediction = LayerPrediction(logits, both[1], both[2])
        terms = LOSS.terms(Predictions((prediction,), selected=right), [own], None, torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(terms["class"], logits)
        assert gradient[0, 1, own.labels[0]] <= 0  # more of it
        assert (gradient[0, 0] >= 0).all()  # less of any class


def test_no_object_anywhere_teaches_the_class_alone() -> None:
    objects = [objects_of([], SIDE, 0), objects_of([], SIDE, 1)]
    embedding = nn.Embedding(CLASSES, 8)
    denoising = denoising_queries(objects, embedding, queries=100, noise=0.4, generator=torch.Generator())
    assert denoising is None
    predictions = all_of(2, 3, 0, 0)
    terms = LOSS.terms(predictions, objects, denoising, torch.Generator())
    assert terms["class"].item() > 0
    assert [terms[name].item() for name in ("l1", "giou", "bce", "dice", "denoising")] == [0] * 5
    total(terms).backward()
    for one in (*predictions.layers, predictions.selected, *predictions.interaction):
        assert one.class_logits.grad is not None
        assert (one.class_logits.grad > 0).all()
        assert one.boxes.grad is not None
        assert not one.boxes.grad.any()


def test_more_objects_than_queries() -> None:
    """The terms stay sums over all objects: two of four are found, so boxes count a half."""
    masks = torch.zeros(4, *SIDE, dtype=torch.uint8)
    for k in range(4):
        masks[k, 2:20, 6 * k : 6 * k + 6] = 1
    own = objects_from([0, 1, 2, 3], masks)
    answer = right_answer(some(own, [1, 2]), 2)
    answer = replace(answer, boxes=answer.boxes + torch.tensor([0.1, 0.0, 0.0, 0.0]))
    terms = LOSS.terms(Predictions((answer,), selected=answer), [own], None, torch.Generator())
    assert terms["l1"].item() == pytest.approx(5 * 0.1 * 2 / 4, rel=1e-4)


def test_parts_of_a_batch_cost_together_what_it_costs() -> None:
    """Where images differ in size a head predicts them apart; all are divided by the objects of the batch."""
    objects = [objects_of([1], SIDE, 0), objects_of([0, 2, 2], SIDE, 1)]
    predictions = replace(all_of(2, 5, 0, 0))

    def part(one: LayerPrediction, row: int) -> LayerPrediction:
        mask_logits = None if one.mask_logits is None else one.mask_logits[row : row + 1]
        return LayerPrediction(one.class_logits[row : row + 1], one.boxes[row : row + 1], mask_logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", same_points_for_all)
        together = LOSS.terms(predictions, objects, None, torch.Generator())
        apart = [
            LOSS.terms(
                Predictions(
                    tuple(part(one, row) for one in predictions.layers),
                    part(predictions.selected, row),
                    tuple(part(one, row) for one in predictions.interaction),
                ),
                [objects[row]],
                None,
                torch.Generator(),
                count=4,
            )
            for row in (0, 1)
        ]
    for name, term in together.items():
        torch.testing.assert_close(term, apart[0][name] + apart[1][name])


def test_bfloat16_is_left_at_the_door() -> None:
    """Of bfloat16 predictions, inside autocast or not, the loss is computed in float32."""
    objects = [objects_of([1, 3], SIDE, 0)]
    low = [t.detach().bfloat16() for t in leaves(Predictions((prediction_of(1, 5, 0),), prediction_of(1, 5, 0)))[:3]]
    terms: list[dict[str, Tensor]] = []
    for tensors, autocast in ((low, True), ([t.float() for t in low], False)):
        one = LayerPrediction(*tensors)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            terms.append(LOSS.terms(Predictions((one,), one), objects, None, torch.Generator().manual_seed(0)))
    for name, term in terms[0].items():
        assert term.dtype == torch.float32
        assert torch.equal(term, terms[1][name])


def test_equal_seeds_look_at_equal_points() -> None:
    objects, predictions = [objects_of([1, 3], SIDE, 0)], all_of(1, 5, 0, 0)
    first, again, other = (
        LOSS.terms(predictions, objects, None, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["bce"], other["bce"])
