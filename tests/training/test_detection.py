"""The detector's own loss: zero where it is right, the sum of its parts, and objects as a view shows them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from featcache import GroundTruth, ImageInfo
from pipeline.data.sources import Batch
from pipeline.detectors.base import Features
from pipeline.detectors.hdetr import Decoded
from pipeline.detectors.positions import Pyramid
from pipeline.training.detection import WEIGHTS, Objects, match, output_loss, set_loss, view_objects

OBJECTS: Objects = [
    (torch.tensor([2, 0]), torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.1]])),
    (torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.4, 0.4]])),
]


def right_answer(confidence: float = 20.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits "2 5 3" and boxes "2 5 4" that name every object once, at queries 3, 1 and 4."""
    logits, boxes = torch.full((2, 5, 3), -confidence), torch.full((2, 5, 4), 0.1)
    for image, query, (columns, wanted), k in ((0, 3, OBJECTS[0], 0), (0, 1, OBJECTS[0], 1), (1, 4, OBJECTS[1], 0)):
        logits[image, query, columns[k]] = confidence
        boxes[image, query] = wanted[k]
    return logits, boxes


def output(logits: torch.Tensor, boxes: torch.Tensor, *, know_classes: bool) -> Decoded:
    pyramid = Pyramid.of_masks([torch.zeros(len(boxes), 1, 1, dtype=torch.bool)])
    return Decoded(
        [], pyramid, torch.zeros(0), [], [logits], [boxes], logits, boxes.logit(), proposals_know_classes=know_classes
    )


def test_the_right_answer_costs_nothing_and_a_wrong_one_something() -> None:
    logits, boxes = right_answer()
    terms = set_loss(logits, boxes, OBJECTS)
    assert all(term.item() == pytest.approx(0, abs=1e-5) for term in terms.values())
    pairs = match(logits[0], boxes[0], OBJECTS[0])
    assert sorted(pairs.tolist()) == [[1, 1], [3, 0]]
    swapped = logits.clone()
    swapped[0, 3], swapped[0, 1] = logits[0, 1], logits[0, 3]
    assert sum(set_loss(swapped, boxes, OBJECTS).values()) > 0.5  # the classes of one box or the place of the other
    moved = boxes.clone()
    moved[1, 4, 0] += 0.1
    terms = set_loss(logits, moved, OBJECTS)
    assert terms["l1"].item() == pytest.approx(0.1 / 3, rel=1e-4)
    assert terms["giou"].item() == pytest.approx((1 - (0.3 / 0.5)) / 3, rel=1e-4)  # no empty part in the hull


def test_a_batch_costs_what_its_images_cost_together() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 5, 3, generator=generator), torch.rand(2, 5, 4, generator=generator) * 0.4 + 0.2
    whole = output_loss(output(logits, boxes, know_classes=True), OBJECTS, 3)
    parts = [
        output_loss(output(logits[i : i + 1], boxes[i : i + 1], know_classes=True), OBJECTS[i : i + 1], 3)
        for i in (0, 1)
    ]
    assert whole.item() == pytest.approx(torch.stack(parts).sum().item(), rel=1e-5)
    terms = set_loss(logits, boxes, OBJECTS)
    expected = 2 * sum(WEIGHTS[name] * term.item() for name, term in terms.items())  # a layer and the first stage alike
    assert whole.item() == pytest.approx(expected, rel=1e-4)


def test_a_first_stage_without_classes_tells_objects_in_column_0() -> None:
    logits, boxes = right_answer()
    one = output(logits, boxes, know_classes=False)
    best = logits.amax(-1, keepdim=True)
    anything = torch.cat(
        [best, torch.full_like(logits[..., 1:], 3.0)], dim=-1
    )  # what other columns say is not looked at
    assert output_loss(replace(one, proposal_logits=anything), OBJECTS, 3).item() == pytest.approx(0, abs=1e-4)
    assert output_loss(one, OBJECTS, 3) > 1


def test_an_image_without_objects_teaches_that_there_are_none() -> None:
    empty: Objects = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))]
    logits, boxes = torch.zeros(1, 4, 3, requires_grad=True), torch.full((1, 4, 4), 0.5)
    terms = set_loss(logits, boxes, empty)
    assert terms["class"] > 0
    assert terms["l1"].item() == terms["giou"].item() == 0
    terms["class"].backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


@pytest.mark.parametrize(("view", "expected"), [("orig", [0.2, 0.5, 0.2, 0.4]), ("hflip", [0.8, 0.5, 0.2, 0.4])])
def test_objects_are_those_that_the_view_shows(view: str, expected: list[float]) -> None:
    """An object, one half outside of the image, a crowd, and one without area."""
    boxes = np.array([[10, 15, 20, 20], [-10, 0, 20, 50], [0, 0, 50, 50], [5, 5, 0, 9]], dtype=np.float64)
    crowd = np.array([False, False, True, False])
    truth = GroundTruth(np.arange(4), np.array([7, 3, 7, 7]), boxes, np.ones(4), crowd, [b""] * 4)
    none = torch.zeros(1, 0)
    features = Features({}, (), {}, none, none, none, none, none)
    batch = Batch(features, [0], [truth], [ImageInfo(1, 50, 100, "a.jpg")], [view])
    labels, found = view_objects(batch, 0, [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}])
    assert labels.tolist() == [1, 0]
    assert found[0].tolist() == pytest.approx(expected)
    assert found[1].tolist() == pytest.approx([0.05 if view == "orig" else 0.95, 0.5, 0.1, 1.0])
