"""Mask2Former's loss beside that of `transformers`, and the ground truth of a view that it is told by."""

from typing import Any

import numpy as np
import pytest
import torch
from test_targets import CATEGORIES, H, W, batch_of, truth_of

from pipeline.data.coco import view_of
from pipeline.data.transforms import cxcywh_to_xyxy, original_to_view, xyxy_to_cxcywh
from pipeline.data.views import resolve
from pipeline.heads.mask2former.decoder import Prediction
from pipeline.training.mask_terms import MaskTerms
from pipeline.training.points import grid_points
from pipeline.training.set_loss import SetLoss
from pipeline.training.view_objects import ViewObjects, view_objects

CLASSES = 4
LOSS = SetLoss(2.0, 0.1, MaskTerms(5.0, 5.0, points=40, oversample=3.0, importance=0.75))


def objects_of(labels: list[int], side: tuple[int, int], seed: int) -> ViewObjects:
    """Rectangles, uint8."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(labels), *side, dtype=torch.uint8)
    for mask in masks:
        x, y, w, h = torch.randint(1, min(side) // 2, (4,), generator=generator).tolist()
        mask[y : y + h, x : x + w] = 1
    return objects_from(labels, masks)


def objects_from(labels: list[int], masks: torch.Tensor) -> ViewObjects:
    """Objects of a whole image, their boxes as tight as the masks are."""
    side = (masks.shape[1], masks.shape[2])
    corners = [(c[:, 1].min(), c[:, 0].min(), c[:, 1].max() + 1, c[:, 0].max() + 1) for c in map(torch.nonzero, masks)]
    boxes = xyxy_to_cxcywh(torch.tensor(corners).view(-1, 4) / torch.tensor([side[1], side[0], side[1], side[0]]))
    return ViewObjects(torch.tensor(labels, dtype=torch.int64), boxes, masks, resolve("orig", 1, side))


def predictions_of(layers: int, queries: int, grids: list[tuple[int, int]], seed: int) -> list[list[Prediction]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            Prediction(
                (torch.randn(queries, CLASSES + 1, generator=generator) * 2).requires_grad_(),
                (torch.randn(queries, h, w, generator=generator) * 3).requires_grad_(),
            )
            for h, w in grids
        ]
        for _ in range(layers)
    ]


def same_points_for_all(shape: Any, *more: int, **options: object) -> torch.Tensor:
    """In place of torch.rand: what is drawn depends on the number of points alone, not on who draws in which order."""
    *rows, points, two = (*shape, *more) if isinstance(shape, tuple) else (shape, *more)
    generator = torch.Generator().manual_seed(points)
    return draw((points, two), generator).expand(*rows, -1, -1).contiguous()


def draw(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.empty(shape).uniform_(generator=generator)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("labels", "queries"), [([[1, 3], [0, 0, 2]], 6), ([[2], []], 3), ([[0, 1, 2, 3]], 2)])
def test_the_loss_is_that_of_transformers(
    monkeypatch: pytest.MonkeyPatch, labels: list[list[int]], queries: int, seed: int
) -> None:
    """Terms and gradients, every layer; also with an image without objects and with more objects than queries."""
    pytest.importorskip("transformers")
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    settings: Any = {"train_num_points": LOSS.masks.points, "no_object_weight": 0.1, "num_labels": CLASSES}
    peer = Mask2FormerLoss(Mask2FormerConfig(**settings), {})
    monkeypatch.setattr(torch, "rand", same_points_for_all)
    side = (24, 32)
    objects = [objects_of(own, side, seed + row) for row, own in enumerate(labels)]
    layers = predictions_of(3, queries, [(6, 8)] * len(labels), seed)
    found = LOSS.terms(layers, objects, torch.Generator())
    masks = [own.masks.float() for own in objects]
    classes = [own.labels for own in objects]
    expected = {"class": torch.zeros(()), "bce": torch.zeros(()), "dice": torch.zeros(())}
    for layer in layers:
        mask_logits = torch.stack([one.mask_logits for one in layer])
        terms = peer(mask_logits, torch.stack([one.class_logits for one in layer]), masks, classes)
        expected["class"] = expected["class"] + 2 * terms["loss_cross_entropy"]
        expected["bce"] = expected["bce"] + 5 * terms["loss_mask"]
        expected["dice"] = expected["dice"] + 5 * terms["loss_dice"]
    leaves = [tensor for layer in layers for one in layer for tensor in (one.class_logits, one.mask_logits)]
    for name, term in found.items():
        torch.testing.assert_close(term, expected[name])
    mine, own = (
        torch.autograd.grad(sum(t.values(), torch.zeros(())), leaves, allow_unused=True) for t in (found, expected)
    )
    for first, second in zip(mine, own, strict=True):
        if second is None or first is None:  # the masks of an image without objects
            assert first is None or not first.any()
            assert second is None or not second.any()
            continue
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_images_of_any_sizes_share_a_batch() -> None:
    """Two images of other sizes and grids: the mask terms are the means of their own, weighted by their objects."""
    loss = SetLoss(2.0, 0.1, MaskTerms(5.0, 5.0, points=400, oversample=3.0, importance=0.75))
    objects = [objects_of([1], (24, 32), 0), objects_of([0, 2, 2], (30, 20), 1)]
    layers = predictions_of(1, 5, [(6, 8), (8, 5)], 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", same_points_for_all)
        together = loss.terms(layers, objects, torch.Generator())
        alone = [loss.terms([[layers[0][row]]], [objects[row]], torch.Generator()) for row in (0, 1)]
    for name in ("bce", "dice"):
        assert together[name].item() == pytest.approx((alone[0][name] + 3 * alone[1][name]).item() / 4, rel=1e-5)


def test_no_object_anywhere_teaches_the_class_alone() -> None:
    layers = predictions_of(2, 3, [(6, 8)], 0)
    terms = LOSS.terms(layers, [objects_of([], (24, 32), 0)], torch.Generator())
    assert (terms["bce"].item(), terms["dice"].item()) == (0, 0)
    assert terms["class"].item() > 0
    sum(terms.values(), torch.zeros(())).backward()


def test_a_right_answer_costs_almost_nothing() -> None:
    masks = torch.zeros(2, 24, 32, dtype=torch.uint8)
    masks[0, 4:16, 2:18], masks[1, 10:22, 14:30] = 1, 1
    own = objects_from([1, 3], masks)
    sure = torch.full((3, CLASSES + 1), -20.0)
    sure[0, 3], sure[1, 1], sure[2, CLASSES] = 20, 20, 20  # the order of the objects is of no matter
    logits = torch.cat([masks.flip(0).float(), torch.zeros(1, 24, 32)]) * 16 - 8
    # not at edges, where all is half
    loss = SetLoss(2.0, 0.1, MaskTerms(5.0, 5.0, points=400, oversample=3.0, importance=0.0))
    right = loss.terms([[Prediction(sure, logits)]], [own], torch.Generator().manual_seed(0))
    assert right["class"].item() < 1e-6
    wrong = loss.terms([[Prediction(sure, logits.flip(0))]], [own], torch.Generator().manual_seed(0))
    assert sum(term.item() for term in wrong.values()) > 10 * sum(term.item() for term in right.values())


@pytest.fixture
def triangle() -> np.ndarray:
    """Not its own mirror image."""
    y, x = np.mgrid[:H, :W]
    return (x >= 10) & (x < 40) & (y >= 5) & (y < 35) & (y - 5 >= x - 10)


def objects_in(view: str, masks: list[np.ndarray], **truth: Any) -> ViewObjects:
    batch = batch_of(torch.zeros(1, 4), truth_of(masks, [3] + [7] * (len(masks) - 1), **truth), view)
    return view_objects(batch, CATEGORIES)[0]


def test_the_whole_image_and_its_mirror(triangle: np.ndarray) -> None:
    """At the centres of the pixels the view is the image itself."""
    y, x = np.mgrid[:H, :W] + 0.5
    points = torch.from_numpy(np.stack([x / W, y / H], axis=-1)).float().view(-1, 2)
    straight = objects_in("orig", [triangle, ~triangle]).sample(points).view(2, H, W)
    torch.testing.assert_close(straight, torch.from_numpy(np.stack([triangle, ~triangle])).float(), atol=1e-4, rtol=0)
    mirrored = objects_in("hflip", [triangle]).sample(points).view(H, W)
    torch.testing.assert_close(mirrored, straight[0].flip(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("view", ["scale0.5", "crop1", "crop2", "lsj1", "lsj2", "lsj3"])
def test_a_window_shows_its_part(triangle: np.ndarray, view: str) -> None:
    """A point of the view lies on the object where the pixel under it does; nothing is beyond the image."""
    batch = batch_of(torch.zeros(1, 4), truth_of([triangle], [3]), view)
    shown = view_of(batch.infos[0], view)
    centres = torch.tensor([[x + 0.5, y + 0.5, x + 0.5, y + 0.5] for y in range(H) for x in range(W)])
    places = original_to_view(centres, (H, W), shown)[:, :2].float()
    inside = ((places > 0) & (places < 1)).all(1)
    own = view_objects(batch, CATEGORIES)[0]
    expected = torch.from_numpy(triangle).flatten()[inside].float()
    if not len(own):
        assert expected.sum() < 0.05 * triangle.sum()
        return
    torch.testing.assert_close(own.sample(places[inside])[0], expected, atol=1e-3, rtol=0)
    assert own.sample(grid_points(1, 50)).max() <= 1 + 1e-5


@pytest.mark.parametrize("view", ["orig", "hflip", "scale0.5", "crop1", "crop2", "lsj1", "lsj2", "lsj3"])
def test_boxes_are_around_what_the_view_shows(triangle: np.ndarray, view: str) -> None:
    """Beside the extent of the points of a fine grid that lie on the object, which a window may cut."""
    own = objects_in(view, [triangle, ~triangle])
    points, (x0, y0, x1, y1) = grid_points(1, 400)[0], own.view.window
    pixel = max(1 / (x1 - x0), 1 / (y1 - y0))
    for box, share in zip(own.boxes, own.sample(points), strict=True):
        on = points[share > 0.5]
        corners = torch.cat([on.amin(0), on.amax(0)])
        torch.testing.assert_close(cxcywh_to_xyxy(box), corners, atol=pixel, rtol=0)  # its tip is one pixel


def test_crowds_and_empty_masks_teach_nothing(triangle: np.ndarray) -> None:
    empty = np.zeros_like(triangle)
    own = objects_in("orig", [triangle, empty, ~triangle], crowd=[False, False, True])
    assert own.labels.tolist() == [0]
    assert len(objects_in("orig", [empty])) == 0
