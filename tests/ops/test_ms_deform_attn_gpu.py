"""The kernels of deformable attention on a GPU: the cases that run on the CPU elsewhere, and what only a device has."""

import pytest
import torch
from attn_cases import Case, case, cases, gradients
from attn_check import check
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from pipeline.ops import cuda_driver, ms_deform_attn_cuda
from pipeline.ops.ms_deform_attn import by_grid_sample, ms_deform_attn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(bool(cuda_driver.missing()), reason=f"no GPU for the kernels: {cuda_driver.missing()}"),
]
DEVICE = torch.device("cuda")
SOME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = [(100, 152), (50, 76), (25, 38), (13, 19)]


@SOME
@given(one=cases(channels=(8,), points=(2,)))
def test_equals_grid_sample(one: Case) -> None:
    check(one.to(DEVICE))


@SOME
@given(one=cases(channels=(3, 12), points=(4,)))
def test_equals_grid_sample_with_few_channels(one: Case) -> None:
    check(one.to(DEVICE))


@pytest.mark.parametrize(("kind", "rtol"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_formats(kind: torch.dtype, rtol: float) -> None:
    for seed in range(5):
        check(case([(5, 7), (3, 4)], b=2, q=9, channels=16, seed=seed).to(DEVICE, kind), rtol=rtol)


def test_levels_of_real_size() -> None:
    check(case(SHAPES, q=3000, heads=8, channels=32).to(DEVICE))


def test_deterministic_gradient_has_the_same_bits_every_time() -> None:
    one = case(SHAPES, q=3000, heads=8, channels=32).to(DEVICE)
    grad = torch.randn(1, 3000, 256, device=DEVICE)
    once, again = (gradients(ms_deform_attn, one, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    torch.use_deterministic_algorithms(False)
    for exact, fast in zip(once, gradients(ms_deform_attn, one, grad), strict=True):
        assert torch.allclose(exact, fast, atol=1e-4 * exact.abs().max().item(), rtol=0)


def test_float64_goes_by_grid_sample() -> None:
    one = case([(5, 7), (3, 4)], channels=8).to(DEVICE)
    arguments = one.value.double(), one.shapes, one.locations.double(), one.weights.double()
    assert torch.equal(ms_deform_attn(*arguments), by_grid_sample(*arguments))


def test_runs_on_the_current_stream() -> None:
    one = case(SHAPES, q=3000, heads=8, channels=32).to(DEVICE)
    expected = ms_deform_attn(one.value, one.shapes, one.locations, one.weights)
    stream = torch.cuda.Stream()
    busy = torch.ones(8192, 8192, device=DEVICE)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.mm(busy, busy)
        doubled = one.value * 2  # not there yet when another stream would read it
        found = ms_deform_attn(doubled, one.shapes, one.locations, one.weights)
    stream.synchronize()
    assert torch.allclose(found, 2 * expected, atol=1e-5)


def test_opcheck() -> None:
    one = case([(5, 7), (3, 4)], b=2, channels=8).to(DEVICE)
    value = one.value.requires_grad_()
    arguments = value, [5, 7, 3, 4], one.locations, one.weights
    torch.library.opcheck(torch.ops.featcache.ms_deform_attn.default, arguments)


def test_compiles_under_autocast() -> None:
    torch.use_deterministic_algorithms(False)
    one = case(SHAPES, q=300, heads=8, channels=32).to(DEVICE)
    mix = torch.ones(32, 32, device=DEVICE) / 32

    def attend(value: Tensor) -> Tensor:
        return ms_deform_attn(value @ mix, one.shapes, one.locations, one.weights)

    with torch.autocast("cuda", torch.bfloat16):
        plain, compiled = attend(one.value), torch.compile(attend, fullgraph=True)(one.value)
    assert plain.dtype == torch.bfloat16
    assert torch.allclose(plain.float(), compiled.float(), atol=0.05)


def test_the_operator_takes_the_kernel() -> None:
    one = case([(5, 7), (3, 4)], b=2, channels=8).to(DEVICE)
    arguments = one.value, one.shapes, one.locations, one.weights
    assert not ms_deform_attn_cuda.unable(one.value, one.shapes)
    assert torch.equal(ms_deform_attn(*arguments), ms_deform_attn_cuda.attend(*arguments))
