"""Deformable attention against a plain loop, and its two ways and their gradients against each other."""

from collections.abc import Callable

import pytest
import torch
from attn_cases import Case, case, cases, gradients
from hypothesis import given, settings
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.ops import ms_deform_attn_entries
from pipeline.ops.ms_deform_attn import by_grid_sample, ms_deform_attn

SHAPES = [(5, 7), (3, 4)]


def sample(grid: Tensor, x: float, y: float) -> Tensor:
    """Bilinear value of "h w d" at (x, y) in 0-1, cell centres at half cells, zero outside."""
    h, w, d = grid.shape
    column, row = x * w - 0.5, y * h - 0.5
    left, top = int(torch.floor(torch.tensor(column))), int(torch.floor(torch.tensor(row)))
    value = torch.zeros(d, dtype=grid.dtype)
    for r in (top, top + 1):
        for c in (left, left + 1):
            if 0 <= r < h and 0 <= c < w:
                value += (1 - abs(row - r)) * (1 - abs(column - c)) * grid[r, c]
    return value


@pytest.mark.parametrize("attend", [by_grid_sample, ms_deform_attn])
def test_equals_a_plain_loop(attend: Callable[..., Tensor]) -> None:
    one = case(SHAPES, b=2, q=3, channels=5, spread=0.2, dtype=torch.float64)
    b, q, heads, _, points = one.weights.shape
    found = attend(one.value, SHAPES, one.locations, one.weights)
    levels = one.value.split([h * w for h, w in SHAPES], dim=1)
    expected = torch.zeros(b, q, heads, 5, dtype=torch.float64)
    for i in range(b):
        for j in range(q):
            for m in range(heads):
                for level, (h, w) in enumerate(SHAPES):
                    grid = levels[level][i, :, m].view(h, w, 5)
                    for p in range(points):
                        x, y = one.locations[i, j, m, level, p].tolist()
                        expected[i, j, m] += one.weights[i, j, m, level, p] * sample(grid, x, y)
    assert torch.allclose(found, expected.flatten(2), atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(cases(dtype=torch.float64))
def test_both_ways_agree_with_their_gradients(one: Case) -> None:
    found = ms_deform_attn(one.value, one.shapes, one.locations, one.weights)
    expected = by_grid_sample(one.value, one.shapes, one.locations, one.weights)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    grad = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view(found.shape)
    for mine, theirs in zip(gradients(ms_deform_attn, one, grad), gradients(by_grid_sample, one, grad), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


def test_gradcheck() -> None:
    one = case(SHAPES, b=2, q=2, spread=0.2, dtype=torch.float64, seed=3)
    leaves = [part.requires_grad_() for part in (one.value, one.locations, one.weights)]
    assert torch.autograd.gradcheck(lambda v, x, a: ms_deform_attn(v, SHAPES, x, a), leaves)


def test_float32_rounds_no_worse_than_grid_sample() -> None:
    shapes = [(20, 31), (10, 16)]
    exact = case(shapes, b=2, q=200, heads=4, channels=8, dtype=torch.float64)
    rounded = Case(exact.value.float(), shapes, exact.locations.float(), exact.weights.float())
    exact = Case(rounded.value.double(), shapes, rounded.locations.double(), rounded.weights.double())
    grad = torch.randn(2, 200, 32, generator=torch.Generator().manual_seed(1))
    wanted = gradients(by_grid_sample, exact, grad.double())
    mine, theirs = gradients(ms_deform_attn, rounded, grad), gradients(by_grid_sample, rounded, grad)
    for one, other, want in zip(mine, theirs, wanted, strict=True):
        assert (one - want).abs().max() <= 2 * (other - want).abs().max()


def test_images_in_groups_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    one = case(SHAPES, b=5, q=6)
    grad = torch.randn(5, 6, 6)
    together = ms_deform_attn(one.value, SHAPES, one.locations, one.weights)
    wanted = gradients(ms_deform_attn, one, grad)
    monkeypatch.setattr(ms_deform_attn_entries, "POINTS_AT_ONCE", 2 * one.weights[0].numel())
    assert torch.equal(ms_deform_attn(one.value, SHAPES, one.locations, one.weights), together)
    for found, want in zip(gradients(ms_deform_attn, one, grad), wanted, strict=True):
        assert torch.equal(found, want)


def test_points_without_end_read_zero_and_those_that_are_no_number_spoil_their_query_alone() -> None:
    one = case(SHAPES, q=3)
    one.locations[0, 0] = torch.inf
    one.locations[0, 1, 0, 1, 2] = torch.nan
    found = ms_deform_attn(one.value, SHAPES, one.locations, one.weights)[0].view(3, 2, 3)
    assert (found[0] == 0).all()
    assert found[1, 0].isnan().all()
    assert torch.isfinite(found[1, 1]).all()
    assert torch.isfinite(found[2]).all()
    by_value, by_location, _ = gradients(ms_deform_attn, one, torch.ones(1, 3, 6))
    assert by_value.shape == one.value.shape
    assert (by_location[0, 0] == 0).all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(kind: torch.dtype) -> None:
    one = case(SHAPES, q=30, channels=8).to(dtype=kind)
    exact = one.to(dtype=torch.float32)
    found = ms_deform_attn(one.value, SHAPES, one.locations, one.weights)
    wanted = ms_deform_attn(exact.value, SHAPES, one.locations, one.weights)
    assert torch.equal(found, wanted.to(kind))
    grad = torch.randn(wanted.shape).to(kind)
    mine, theirs = gradients(ms_deform_attn, one, grad), gradients(ms_deform_attn, exact, grad.float())
    assert [part.dtype for part in mine] == [kind, torch.float32, torch.float32]
    for found, want in zip(mine, theirs, strict=True):
        assert torch.equal(found, want.to(found.dtype))


@pytest.mark.parametrize("broken", ["tokens", "heads", "levels", "weights"])
def test_shapes_that_contradict_each_other_are_refused(broken: str) -> None:
    one = case(SHAPES)
    value, shapes, locations, weights = one.value, SHAPES, one.locations, one.weights
    if broken == "tokens":
        value = value[:, 1:]
    elif broken == "heads":
        locations, weights = locations[:, :, :1], weights[:, :, :1]
    elif broken == "levels":
        shapes = [(47, 1)]
    else:
        weights = weights[..., :3]
    with pytest.raises(PipelineError, match="deformable attention over"):
        ms_deform_attn(value, shapes, locations, weights)


@pytest.mark.parametrize("strayed", ["value", "locations", "weights"])
def test_what_lies_on_two_devices_is_refused(strayed: str) -> None:
    """Kernels take addresses as they are: one of the processor's memory would end every later use of the GPU."""
    one = case(SHAPES)
    parts = {"value": one.value, "locations": one.locations, "weights": one.weights}
    parts[strayed] = parts[strayed].to("meta")
    with pytest.raises(PipelineError, match="move them to one device"):
        ms_deform_attn(parts["value"], SHAPES, parts["locations"], parts["weights"])
