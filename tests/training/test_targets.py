"""Which boxes learn and what they learn, on objects that a person can check; the flipped view learns the mirror."""

import numpy as np
import pytest
import torch

from featcache import GroundTruth, ImageInfo
from pipeline.data.sources import Batch
from pipeline.data.transforms import cxcywh_to_xyxy, original_to_view, view_to_original, xyxy_to_cxcywh
from pipeline.data.views import View, resolve
from pipeline.detectors.base import Features
from pipeline.masks import rle
from pipeline.training import targets as targets_file
from pipeline.training.config import TrainConfig
from pipeline.training.points import grid_points
from pipeline.training.targets import Targets, build_targets
from pipeline.training.visible import LEAST_VISIBLE

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


def test_costs_choose_the_detection_even_where_two_trainings_share_a_batch(triangle: np.ndarray) -> None:
    """One box is the object's, of another class; the other is of its class and elsewhere."""
    boxes = torch.tensor([[10.0, 5.0, 40.0, 35.0], [30.0, 20.0, 55.0, 38.0]])
    batch = batch_of(boxes, truth_of([triangle], [3]))
    batch.features.labels[0, 0] = 1
    for settings, query in (({}, 1), ({"cost_class": 0}, 0), ({"cost_class": 1, "cost_bbox": 50}, 0)):
        targets = build(batch, **settings)
        assert targets.queries[0].tolist() == [[query]]
        assert (targets.labels.tolist(), targets.detected_labels.tolist()) == ([0], [1 - query])


@pytest.mark.parametrize("match", ["hungarian", "overlap"])
def test_a_mask_learnt_in_the_box_of_the_object(triangle: np.ndarray, match: str) -> None:
    boxes = torch.tensor([[1.0, 1.0, 3.0, 3.0], [4.0, 9.0, 34.0, 39.0]])
    batch = batch_of(boxes, truth_of([np.zeros((H, W), dtype=bool), triangle], [3, 7]))
    for roi_boxes, (left, top) in (("detected", (4, 9)), ("truth", (10, 5))):
        targets = build(batch, match=match, match_iou=0.1, roi_boxes=roi_boxes)
        assert targets.queries[0].tolist() == [[1]]  # the detection's, in whichever box
        expected = torch.from_numpy(triangle[top : top + 30, left : left + 30]).float()
        assert torch.allclose(targets.sample(grid_points(1, 30)).view(30, 30), expected, atol=1e-4)
        assert torch.allclose(targets.frames.float(), torch.tensor([[left, top, left + 30.0, top + 30.0]]), atol=1e-4)


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


def show(monkeypatch: pytest.MonkeyPatch, *window: float, mirrored: bool = False) -> View:
    """Let every draw be this window."""
    view = View((H, W), window, mirrored)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(targets_file, "view_of", lambda info, name: view)
    return view


def batch_in_view(boxes_xyxy: torch.Tensor, truth: GroundTruth, view: View) -> Batch:
    """As `batch_of`, the boxes given in pixels of the original and detected in the view."""
    boxes = cxcywh_to_xyxy(original_to_view(boxes_xyxy, (H, W), view)).float()
    return batch_of(boxes * torch.tensor([W, H, W, H]), truth, "crop1")


@pytest.mark.parametrize("mirrored", [False, True])
def test_targets_of_a_crop_are_the_crop_of_the_mask(
    triangle: np.ndarray, monkeypatch: pytest.MonkeyPatch, mirrored: bool
) -> None:
    """The canvas as one box: the mask beyond the window is not there, and what is there lies as the view shows it."""
    view = show(monkeypatch, 12.0, 10.0, 36.0, 26.0, mirrored=mirrored)
    targets = build(batch_in_view(torch.tensor([[12.0, 10.0, 36.0, 26.0]]), truth_of([triangle], [7]), view))
    y, x = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
    centres = torch.stack([(x + 0.5) / 24, (y + 0.5) / 16], dim=-1).view(1, -1, 2)
    sampled = targets.sample(centres).view(16, 24)
    crop = torch.from_numpy(triangle[10:26, 12:36]).float()
    assert torch.allclose(sampled, crop.flip(1) if mirrored else crop, atol=1e-4)
    assert targets.areas.item() == crop.sum()
    assert targets.box_areas.item() == pytest.approx(24 * 16, rel=1e-5)


def test_nothing_is_learnt_of_what_lies_beyond_the_window(
    triangle: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = show(monkeypatch, 10.0, 20.0, 40.0, 40.0)
    targets = build(batch_in_view(torch.tensor([[10.0, 5.0, 40.0, 35.0]]), truth_of([triangle], [7]), view))
    sampled = targets.sample(grid_points(1, 30)).view(30, 30)
    assert not sampled[:15].any()
    assert torch.allclose(sampled[15:], torch.from_numpy(triangle[20:35, 10:40]).float(), atol=1e-4)


def test_the_box_that_matches_is_that_of_the_pixels_left(triangle: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the triangle only the tip at the top left is in the window; its box is no wider than the tip."""
    view = show(monkeypatch, 0.0, 0.0, 60.0, 15.0)
    tip, loose = torch.tensor([[10.0, 5.0, 20.0, 15.0]]), torch.tensor([[10.0, 5.0, 40.0, 15.0]])
    truth = truth_of([triangle], [7])
    assert len(build(batch_in_view(tip, truth, view), match="overlap", match_iou=0.95)) == 1
    assert len(build(batch_in_view(loose, truth, view), match="overlap", match_iou=0.4)) == 0


@pytest.mark.parametrize(("columns", "learns"), [(40, True), (2, True), (1, False), (0, False), (-3, False)])
def test_objects_of_which_hardly_anything_is_left_teach_nothing(
    monkeypatch: pytest.MonkeyPatch, columns: int, learns: bool
) -> None:
    """Of the 40 columns of a block: two are the twentieth that is asked for."""
    assert LEAST_VISIBLE == 0.05
    block = np.zeros((H, W), dtype=bool)
    block[10:30, 15:55] = True
    view = show(monkeypatch, 0.0, 0.0, 15.0 + columns, 40.0)
    batch = batch_in_view(torch.tensor([[8.0, 8.0, 14.0, 32.0]]), truth_of([block], [3]), view)
    assert len(build(batch)) == learns


def test_an_object_cut_in_a_drawn_view_is_sampled_as_it_is_pasted() -> None:
    """Every draw: the target of the box of what is left, at pixel centres of the original, is the mask there."""
    y, x = np.mgrid[:H, :W] + 0.5
    disc = (x - 30) ** 2 + (y - 20) ** 2 < 14**2
    for name in [f"{kind}{number}" for kind in ("crop", "lsj") for number in range(1, 9)]:
        view = resolve(name, 1, (H, W))
        x0, y0, x1, y1 = view.window
        seen = disc & (x > x0) & (x < x1) & (y > y0) & (y < y1)
        if seen.sum() < 0.1 * disc.sum():
            continue
        box = torch.tensor([[x[seen].min() - 0.5, y[seen].min() - 0.5, x[seen].max() + 0.5, y[seen].max() + 0.5]])
        batch = batch_of(
            cxcywh_to_xyxy(original_to_view(box, (H, W), view)).float() * torch.tensor([W, H, W, H]),
            truth_of([disc], [3]),
            name,
        )
        targets = build(batch)
        assert len(targets) == 1, name
        frame = view_to_original(targets.boxes[0], (H, W), view)[0]
        left, top, right, bottom = frame.tolist()
        inside = np.argwhere((x > left) & (x < right) & (y > top) & (y < bottom))
        pixels = torch.from_numpy(np.ascontiguousarray(inside[:, ::-1]) + 0.5)
        points = (pixels - frame[:2]) / (frame[2:] - frame[:2])
        if view.mirrored:
            points[:, 0] = 1 - points[:, 0]
        sampled = targets.sample(points[None].float())[0]
        assert torch.allclose(sampled, torch.from_numpy(seen[inside[:, 0], inside[:, 1]]).float(), atol=1e-3), name
        assert targets.areas.item() == seen.sum()
