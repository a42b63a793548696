"""Which boxes learn and what they learn, on objects that a person can check; the flipped view learns the mirror."""

import numpy as np
import pytest
import torch

from featcache import GroundTruth, ImageInfo
from pipeline.data.sources import Batch
from pipeline.data.transforms import cxcywh_to_xyxy, xyxy_to_cxcywh
from pipeline.detectors.base import Features
from pipeline.masks import rle
from pipeline.training.config import TrainConfig
from pipeline.training.points import grid_points
from pipeline.training.targets import Targets, build_targets

H, W = 40, 60
CATEGORIES = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]


def truth_of(masks: list[np.ndarray], categories: list[int], crowd: list[bool] | None = None) -> GroundTruth:
    counts = [rle.encode(mask) for mask in masks]
    return GroundTruth(
        ids=np.arange(len(masks)),
        category_ids=np.array(categories),
        boxes_xywh=np.array([rle.box_xywh(c, (H, W)) for c in counts], dtype=np.float64).reshape(-1, 4),
        areas=np.array([float(mask.sum()) for mask in masks]),
        iscrowd=np.array(crowd or [False] * len(masks), dtype=bool),
        rles=counts,
    )


def batch_of(boxes_xyxy: torch.Tensor, truth: GroundTruth, view: str = "orig") -> Batch:
    boxes = xyxy_to_cxcywh(boxes_xyxy / torch.tensor([W, H, W, H]))
    n = len(boxes)
    features = Features(
        maps={"c1": torch.zeros(1, 1, 10, 15)},
        encoder=(),
        strides={"c1": 4},
        queries=torch.arange(n)[None, :, None].float(),
        boxes=boxes[None],
        scores=torch.full((1, n), 0.5),
        labels=torch.zeros(1, n, dtype=torch.int64),
        input_hw=torch.tensor([[H, W]]),
    )
    return Batch(features, [n], [truth], [ImageInfo(1, H, W, "a.jpg")], [view])


def build(batch: Batch, **settings: object) -> Targets:
    config = TrainConfig(steps=1, **settings)  # pyright: ignore[reportArgumentType]
    return build_targets(batch, CATEGORIES, config, torch.Generator().manual_seed(0))


@pytest.fixture
def triangle() -> np.ndarray:
    """Fills the lower left half of the box (10, 5) to (40, 35): not its own mirror image."""
    y, x = np.mgrid[:H, :W]
    return (x >= 10) & (x < 40) & (y >= 5) & (y < 35) & (y - 5 >= x - 10)


def test_targets_are_the_mask_in_the_frame_of_the_predicted_box(triangle: np.ndarray) -> None:
    box = torch.tensor([[10.0, 5.0, 40.0, 35.0]])
    targets = build(batch_of(box, truth_of([triangle], [7])))
    sampled = targets.sample(grid_points(1, 30)).view(30, 30)
    assert torch.allclose(sampled, torch.from_numpy(triangle[5:35, 10:40]).float(), atol=1e-4)
    assert targets.labels.tolist() == [1]
    assert targets.areas.item() == triangle.sum()
    assert targets.box_areas.item() == pytest.approx(900, rel=1e-5)


def test_a_shifted_box_sees_a_shifted_mask(triangle: np.ndarray) -> None:
    box = torch.tensor([[4.0, 9.0, 34.0, 39.0]])
    targets = build(batch_of(box, truth_of([triangle], [7])))
    sampled = targets.sample(grid_points(1, 30)).view(30, 30)
    assert torch.allclose(sampled, torch.from_numpy(triangle[9:39, 4:34]).float(), atol=1e-4)


def test_flipped_view_learns_the_mirror(triangle: np.ndarray) -> None:
    box = torch.tensor([[10.0, 5.0, 40.0, 35.0]])
    mirrored = torch.stack([W - box[:, 2], box[:, 1], W - box[:, 0], box[:, 3]], dim=1)
    truth = truth_of([triangle], [3])
    points = grid_points(1, 30)
    plain = build(batch_of(box, truth)).sample(points).view(30, 30)
    flipped = build(batch_of(mirrored, truth, "hflip")).sample(points).view(30, 30)
    assert torch.allclose(flipped, plain.flip(1), atol=1e-4)
    assert not torch.allclose(flipped, plain, atol=0.5)


def test_crowds_and_empty_objects_teach_nothing(triangle: np.ndarray) -> None:
    empty = np.zeros((H, W), dtype=bool)
    truth = truth_of([triangle, triangle, empty], [3, 3, 7], [True, False, False])
    boxes = torch.tensor([[10.0, 5.0, 40.0, 35.0]] * 3)
    assert len(build(batch_of(boxes, truth))) == 1
    assert len(build(batch_of(boxes, truth), match="overlap")) == 3
    only_crowd = build(batch_of(boxes, truth_of([triangle], [3], [True])))
    assert len(only_crowd) == 0
    assert only_crowd.sample(torch.zeros(0, 9, 2)).shape == (0, 9)


def test_image_without_objects(triangle: np.ndarray) -> None:
    targets = build(batch_of(torch.tensor([[10.0, 5.0, 40.0, 35.0]]), truth_of([], [])))
    assert len(targets) == 0
    assert [len(rows) for rows in targets.boxes] == [0]


def test_each_box_keeps_its_query_and_at_most_so_many_are_taken(triangle: np.ndarray) -> None:
    boxes = torch.tensor([[10.0, 5.0, 40.0, 35.0]]) + torch.arange(12)[:, None] * 0.1
    targets = build(batch_of(boxes, truth_of([triangle], [3])), match="overlap", rois_per_image=4)
    assert len(targets) == 4
    numbers = targets.queries[0][:, 0].long()
    expected = boxes[numbers] / torch.tensor([W, H, W, H])
    assert torch.allclose(cxcywh_to_xyxy(targets.boxes[0]), expected, atol=1e-6)
