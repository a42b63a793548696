"""RoIAlign against a plain loop and against the sum of maps it stands for."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.roi_align import roi_align


def reference(map_chw: Tensor, box: Tensor, stride: int, size: int, ratio: int) -> Tensor:
    """RoIAlign with aligned=True of one box, sample by sample, in float64."""
    c, h, w = map_chw.shape
    x0, y0, x1, y1 = (box.double() / stride - 0.5).tolist()
    cell_w, cell_h = (x1 - x0) / size, (y1 - y0) / size
    out = torch.zeros(c, size, size, dtype=torch.float64)
    per_cell = [(i + 0.5) / ratio for i in range(ratio)]
    for row in range(size):
        for column in range(size):
            samples = [(y0 + (row + v) * cell_h, x0 + (column + u) * cell_w) for v in per_cell for u in per_cell]
            out[:, row, column] = torch.stack([bilinear(map_chw.double(), y, x, h, w) for y, x in samples]).mean(0)
    return out


def bilinear(map_chw: Tensor, y: float, x: float, h: int, w: int) -> Tensor:
    if y < -1 or y > h or x < -1 or x > w:
        return torch.zeros(len(map_chw), dtype=torch.float64)
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    top, left = math.floor(y), math.floor(x)
    below, right = min(top + 1, h - 1), min(left + 1, w - 1)
    dy, dx = y - top, x - left
    upper = map_chw[:, top, left] * (1 - dx) + map_chw[:, top, right] * dx
    lower = map_chw[:, below, left] * (1 - dx) + map_chw[:, below, right] * dx
    return upper * (1 - dy) + lower * dy


BOXES = torch.tensor([[3.0, 5.0, 30.0, 41.0], [0.0, 0.0, 64.0, 48.0], [10.2, 7.7, 10.9, 8.1], [50.0, 40.0, 80.0, 60.0]])


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_equals_a_plain_loop(ratio: int) -> None:
    maps = torch.randn(1, 3, 12, 16)
    found = roi_align([(maps, 4)], [BOXES], 6, sampling_ratio=ratio)
    expected = torch.stack([reference(maps[0], box, 4, 6, ratio) for box in BOXES])
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_several_levels_are_their_upsampled_sum() -> None:
    fine, coarse = torch.randn(1, 4, 25, 33), torch.randn(1, 4, 13, 17)
    summed = fine + F.interpolate(coarse, size=(25, 33), mode="bilinear", align_corners=False)
    found = roi_align([(fine, 4), (coarse, 8)], [BOXES], 8)
    assert torch.allclose(found, roi_align([(summed, 4)], [BOXES], 8), atol=1e-5)


def test_images_of_a_batch_stay_apart_and_may_have_no_boxes() -> None:
    maps = torch.randn(3, 2, 12, 16)
    none = torch.zeros(0, 4)
    found = roi_align([(maps, 4)], [BOXES[:1], none, BOXES[1:]], 4)
    alone = [roi_align([(maps[i : i + 1], 4)], [b], 4) for i, b in ((0, BOXES[:1]), (2, BOXES[1:]))]
    assert torch.equal(found, torch.cat(alone))
    assert roi_align([(maps, 4)], [none, none, none], 4).shape == (0, 2, 4, 4)


def test_half_precision_maps_keep_float32_boxes() -> None:
    maps = torch.randn(1, 2, 200, 300)
    box = torch.tensor([[803.3, 611.7, 1001.9, 799.1]])  # bfloat16 would move its corners by pixels
    exact = roi_align([(maps.bfloat16().float(), 4)], [box], 8)
    found = roi_align([(maps.bfloat16(), 4)], [box], 8)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


def test_gradient_reaches_every_level() -> None:
    fine = torch.randn(1, 2, 8, 8, dtype=torch.float32, requires_grad=True)
    coarse = torch.randn(1, 2, 4, 4, requires_grad=True)
    roi_align([(fine, 4), (coarse, 8)], [torch.tensor([[0.0, 0.0, 32.0, 32.0]])], 4).sum().backward()
    assert fine.grad is not None
    assert coarse.grad is not None
    # a box over the whole image averages it: every unit of output comes from weights that sum to one
    assert fine.grad.sum().item() == pytest.approx(2 * 16, rel=1e-4)
    assert coarse.grad.sum().item() == pytest.approx(2 * 16, rel=1e-4)


def test_other_boxes_and_threads_change_no_bit() -> None:
    maps = [(torch.randn(1, 8, 60, 70), 4), (torch.randn(1, 8, 30, 35), 8)]
    boxes = torch.cat([BOXES, torch.tensor([[0.0, 0.0, 280.0, 240.0]])])
    together = roi_align(maps, [boxes], 8, backend="cpu")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone = torch.cat([roi_align(maps, [box[None]], 8, backend="cpu") for box in boxes])
            assert torch.equal(alone, together)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_enormous_boxes_pick_what_they_sample() -> None:
    maps = torch.randn(1, 4, 60, 70)
    box = torch.tensor([[0.0, 0.0, 280.0, 240.0]])
    for size in (2, 3):
        one, other = maps.clone().requires_grad_(), maps.clone().requires_grad_()
        found = roi_align([(one, 4)], [box], size, backend="cpu")
        expected = roi_align([(other, 4)], [box], size, backend="torchvision")
        assert torch.allclose(found, expected, atol=1e-5)
        found.square().sum().backward()
        expected.square().sum().backward()
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-5)
