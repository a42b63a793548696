"""The plain PyTorch RoIAlign against torchvision's, which nobody here wrote; then its own derivative."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from roi_cases import Case, cases
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from pipeline.errors import PipelineError
from pipeline.ops.level import Level
from pipeline.ops.roi_align import roi_align, roi_coverage

SOME = settings(max_examples=150, deadline=None)


def run(case: Case, backend: Any = "reference") -> Tensor:
    return roi_align(list(case.levels), case.boxes, case.size, backend=backend, **case.options)


def rois(boxes: list[Tensor]) -> Tensor:
    return torch.cat([F.pad(rows, (1, 0), value=float(image)) for image, rows in enumerate(boxes)])


@SOME
@given(cases(upsamples=("bilinear",), inside_out=False))
def test_equals_torchvision_on_the_upsampled_sum(case: Case) -> None:
    total = case.levels[0].values
    for level in case.levels[1:]:
        total = total + F.interpolate(level.values, size=total.shape[-2:], mode="bilinear", align_corners=False)
    ratio, aligned = case.options["sampling_ratio"], case.options["aligned"]
    expected = torchvision_roi_align(total, rois(case.boxes), case.size, 0.25, ratio, aligned)
    assert torch.allclose(run(case), expected, atol=1e-5, rtol=0)
    for backend in ("torchvision", "cpu"):
        assert torch.allclose(run(case, backend), expected, atol=1e-5, rtol=0)


@SOME
@given(cases(upsamples=("direct",), inside_out=False))
def test_direct_is_the_sum_of_separate_calls(case: Case) -> None:
    ratio, aligned = case.options["sampling_ratio"], case.options["aligned"]
    expected = torch.zeros(1)
    for level in case.levels:
        scale = 1 / level.stride
        expected = expected + torchvision_roi_align(level.values, rois(case.boxes), case.size, scale, ratio, aligned)
    assert torch.allclose(run(case), expected, atol=1e-5, rtol=0)
    for backend in ("torchvision", "cpu"):
        assert torch.allclose(run(case, backend), expected, atol=1e-5, rtol=0)


@SOME
@given(cases(dtype=torch.float64, inside_out=False))
def test_gradient_equals_torchvisions(case: Case) -> None:
    found: list[list[Tensor]] = []
    for backend in ("torchvision", "reference", "cpu"):
        values = [level.values.clone().requires_grad_() for level in case.levels]
        pooled = run(case.with_values(values), backend)
        weights = torch.linspace(-1, 1, pooled.numel()).view(pooled.shape)
        found.append(list(torch.autograd.grad((pooled * weights).sum(), values, materialize_grads=True)))
    for expected, *others in zip(*found, strict=True):
        for other in others:
            assert torch.allclose(expected, other, atol=1e-10, rtol=0)


@settings(max_examples=15, deadline=None)
@given(cases(dtype=torch.float64, channels=(1,), levels=(1, 2)))
def test_gradcheck(case: Case) -> None:
    values = [level.values.requires_grad_() for level in case.levels]
    assert torch.autograd.gradcheck(lambda *new: run(case.with_values(list(new))), values)


@SOME
@given(cases(dtype=torch.float64, levels=(2, 3), inside_out=False))
def test_a_first_level_without_channels_lends_its_grid(case: Case) -> None:
    first, *later = case.levels
    expected = run(case.with_values([torch.zeros_like(first.values), *(level.values for level in later)]))
    grads: list[list[Tensor]] = []
    for backend in ("reference", "torchvision", "cpu"):
        values = [level.values.clone().requires_grad_() for level in later]
        found = run(case.with_values([first.values[:, :0], *values]), backend)
        assert torch.allclose(found, expected, atol=1e-10, rtol=0)
        grads.append(list(torch.autograd.grad(found.square().sum(), values, materialize_grads=True)))
    for one, *others in zip(*grads, strict=True):
        for other in others:
            assert torch.allclose(one, other, atol=1e-10, rtol=0)


@SOME
@given(cases(channels=(1,), dtype=torch.float64, levels=(1,)))
def test_coverage_is_that_of_a_map_of_ones(case: Case) -> None:
    level, options = case.levels[0], {name: case.options[name] for name in ("aligned", "sampling_ratio")}
    boxes = [rows.double() for rows in case.boxes]
    case = Case([Level(torch.ones_like(level.values), level.stride)], boxes, case.size, case.options)
    assert torch.allclose(roi_coverage(level, boxes, case.size, **options), run(case), atol=1e-12, rtol=0)


BOX = torch.tensor([[5.0, 3.0, 29.0, 30.0]])


@pytest.mark.parametrize("backend", ["reference", "torchvision", "cpu"])
def test_uint8_is_read_through_scale_and_offset(backend: Any) -> None:
    stored = torch.randint(0, 256, (2, 3, 8, 9), dtype=torch.uint8)
    scale, offset = torch.rand(2, 3), torch.randn(2, 3)
    floats = stored * scale[:, :, None, None] + offset[:, :, None, None]
    coarse = torch.randn(2, 3, 4, 5)
    found = roi_align([Level(stored, 4, None, scale, offset), (coarse, 8)], [BOX, BOX], 4, backend=backend)
    expected = roi_align([(floats, 4), (coarse, 8)], [BOX, BOX], 4, backend="torchvision")
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.dtype == torch.float32
    mixed = roi_align([Level(stored, 4, None, scale, offset), (coarse.half(), 8)], [BOX, BOX], 4, backend=backend)
    assert mixed.dtype == torch.float16


@pytest.mark.parametrize("backend", ["reference", "torchvision", "cpu"])
@pytest.mark.parametrize("upsample", ["bilinear", "direct"])
def test_images_of_different_size_do_not_see_padding(backend: Any, upsample: Any) -> None:
    sizes, coarse_sizes = [(7, 5), (4, 9)], [(4, 3), (2, 5)]
    fine = [torch.randn(1, 2, h, w) for h, w in sizes]
    coarse = [torch.randn(1, 2, h, w) for h, w in coarse_sizes]
    boxes = [BOX, torch.tensor([[1.0, -3.0, 30.0, 14.0], [8.0, 8.0, 50.0, 50.0]])]
    alone = [
        roi_align([(fine[i], 4), (coarse[i], 8)], [boxes[i]], 3, upsample=upsample, backend=backend) for i in range(2)
    ]
    padded = torch.full((2, 2, 7, 9), torch.nan)
    tokens = torch.full((2, 12, 2), torch.nan)
    for i, ((h, w), (y, x)) in enumerate(zip(sizes, coarse_sizes, strict=True)):
        padded[i, :, :h, :w] = fine[i][0]
        tokens[i, : y * x] = coarse[i][0].flatten(1).T
    levels = [Level(padded, 4, sizes), Level(tokens, 8, coarse_sizes)]
    found = roi_align(levels, boxes, 3, upsample=upsample, backend=backend)
    assert torch.allclose(found, torch.cat(alone), atol=1e-5)


def test_not_a_number_in_a_box_gives_zeros() -> None:
    for backend in ("reference", "cpu"):
        found = roi_align([(torch.randn(1, 2, 5, 5), 4)], [torch.full((1, 4), torch.nan)], 3, backend=backend)
        assert torch.equal(found, torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (lambda m: [], "without a map"),
        (lambda m: [(m, 4), (m[:, :1], 8)], "cannot be added"),
        (lambda m: [(m[:, :, :2], 8), (m, 4)], "more cells than the first"),
        (lambda m: [Level(m.to(torch.uint8), 4)], "scale and offset"),
        (lambda m: [(m.long(), 4)], "int64"),
        (lambda m: [Level(m.flatten(2), 4)], "sizes"),
        (lambda m: [Level(m, 4, [(9, 2)])], "9 x 2"),
        (lambda m: [(m.expand(2, -1, -1, -1), 4)], "1 images for maps of 2"),
    ],
)
def test_contradictions_are_refused(levels: Any, message: str) -> None:
    maps = torch.zeros(1, 2, 4, 4)
    with pytest.raises(PipelineError, match=message):
        roi_align(levels(maps), [BOX], 3)


@pytest.mark.parametrize("strayed", ["map", "scale", "boxes"])
def test_what_lies_on_two_devices_is_refused(strayed: str) -> None:
    """Kernels take addresses as they are: one of the processor's memory would end every later use of the GPU."""
    elsewhere = {strayed: torch.device("meta")}
    maps = torch.zeros(1, 2, 4, 4, dtype=torch.uint8)
    scale, offset = torch.ones(1, 2, device=elsewhere.get("scale")), torch.ones(1, 2)
    levels = [Level(maps, 4, None, scale, offset), (torch.zeros(1, 2, 2, 2, device=elsewhere.get("map")), 8)]
    with pytest.raises(PipelineError, match="on cpu and meta"):
        roi_align(levels, [BOX.to(elsewhere.get("boxes"))], 3)
