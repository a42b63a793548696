"""Which views show a box whole, and what the mean over them is, on a head whose answers are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_tiny
from torch import Tensor

from featcache import ImageInfo
from pipeline import extract
from pipeline.data.sources import Cached
from pipeline.data.transforms import flip_boxes, view_to_original
from pipeline.data.views import View, resolve
from pipeline.detectors.base import Features
from pipeline.heads.base import HeadOutput, MaskHead
from pipeline.heads.looks import Look, looks, predict_looks, shown_whole
from pipeline.masks.scores import mask_quality

VIEWS = ("orig", "hflip", "crop1", "crop2", "lsj1", "scale0.5")
HW = (80, 100)


class Said(MaskHead):
    """Says of every box what the first cell of the first map holds, times the query, more to the right."""

    def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> HeadOutput:
        value = features.levels[0][0, 0, 0, 0] * queries[0][:, 0]
        ramp = torch.tensor([1.0, 2.0]).expand(len(boxes[0]), 2, 2)
        return HeadOutput(value[:, None, None] * ramp, iou=value[:, None].expand(-1, 3) / 100)


def features(value: float) -> Features:
    """One image of two detections."""
    return Features(
        maps={"e8": torch.full((1, 1, 1, 1), value)},
        encoder=("e8",),
        strides={"e8": 8},
        queries=torch.tensor([[[1.0], [10.0]]]),
        boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.25, 0.5, 0.4, 0.4]]]),
        scores=torch.tensor([[0.9, 0.5]]),
        labels=torch.tensor([[2, 1]]),
        input_hw=torch.tensor([[8, 8]]),
    )


def look(value: float, whole: tuple[bool, bool], weight: float, *, mirrored: bool = False) -> Look:
    own = features(value)
    return Look(own, own.boxes[0], torch.tensor(whole), mirrored, weight)


def test_the_mean_is_over_the_views_that_show_a_detection_and_by_their_size() -> None:
    seen = [look(1, (True, True), 1.0), look(3, (True, False), 4.0), look(7, (False, False), 9.0)]
    masks = predict_looks(Said(), seen)
    means = torch.tensor([(1 + 4 * 3) / 5, 10.0])
    torch.testing.assert_close(masks.mask_logits[:, 0], means[:, None] * torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(masks.scores, torch.tensor([0.9, 0.5]) * means / 100)
    assert masks.labels.tolist() == [2, 1]


def test_one_look_is_what_the_head_predicts() -> None:
    own, seen = features(5), look(5, (True, True), 3.0)
    (plain,) = Said().predict(own)
    masks = predict_looks(Said(), [seen])
    torch.testing.assert_close(masks.mask_logits, plain.mask_logits)
    torch.testing.assert_close(masks.scores, plain.scores)


def test_a_mirror_image_is_turned_back() -> None:
    seen = [look(1, (True, True), 1.0), look(1, (True, True), 1.0, mirrored=True)]
    masks = predict_looks(Said(), seen)
    torch.testing.assert_close(masks.mask_logits[0], torch.full((2, 2), 1.5))


def test_without_a_predicted_iou_the_mean_mask_is_judged() -> None:
    class Plain(Said):
        def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> HeadOutput:
            return HeadOutput(super().forward(features, boxes, queries).mask_logits)

    masks = predict_looks(Plain(), [look(1, (True, True), 1.0), look(-0.5, (True, True), 1.0)])
    torch.testing.assert_close(masks.scores, torch.tensor([0.9, 0.5]) * mask_quality(masks.mask_logits))


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ((50, 40, 100, 80), True),  # the window itself
        ((49, 40, 100, 80), False),
        ((50, 39, 100, 80), False),
        ((60, 50, 70, 60), True),
        ((60, 50, 130, 99), True),  # beyond the image there is nothing to see
        ((-5, 0, 20, 20), False),
    ],
)
def test_what_a_window_at_the_lower_right_shows(box: tuple[float, ...], shown: bool) -> None:
    view = View(HW, (50.0, 40.0, 100.0 - 1e-9, 80.0))
    assert shown_whole(torch.tensor([box], dtype=torch.float64), view).tolist() == [shown]


def test_the_views_of_a_cache_show_boxes_where_they_are(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "data")
    arguments: dict[str, Any] = tiny.arguments
    source = Cached(extract.main(**arguments, cache=tmp_path / "c", views=VIEWS))
    batch = source.batch([(2, "orig")])
    boxes = torch.rand(len(batch.features.boxes[0]), 4, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    boxes[:, 2:] = 0.1
    batch = replace(batch, features=replace(batch.features, boxes=boxes[None]))
    info = batch.infos[0]
    image_hw = (info.height, info.width)
    boxes_xyxy = view_to_original(boxes, image_hw)
    found = looks(batch.features, info, VIEWS, lambda name: source.batch([(2, name)]).features)
    assert found[0].features is batch.features
    assert found[0].whole.all()
    weights = [one.weight for one in found]
    assert weights[:2] == [1, 1]
    assert min(weights) == pytest.approx(0.25)
    assert max(weights) > 1
    views = [name for name in VIEWS if shown_whole(boxes_xyxy, resolve(name, info.id, image_hw)).any()]
    assert len(found) == len(views) > 4
    for one, name in zip(found, views, strict=True):
        view = resolve(name, info.id, image_hw)
        assert one.mirrored == view.mirrored
        back = view_to_original(one.boxes, image_hw, view)
        torch.testing.assert_close(back, boxes_xyxy, atol=1e-3, rtol=1e-4)
        stored = source.batch([(2, name)]).features
        torch.testing.assert_close(one.features.levels[0], stored.levels[0], atol=0, rtol=0)


def test_the_first_view_may_be_another() -> None:
    info, own = ImageInfo(7, *HW, "7.png"), features(1)
    found = looks(own, info, ["hflip", "orig", "orig"], lambda name: features(2), first="hflip")
    assert [one.mirrored for one in found] == [False, True]
    torch.testing.assert_close(found[1].boxes, flip_boxes(own.boxes[0]))
