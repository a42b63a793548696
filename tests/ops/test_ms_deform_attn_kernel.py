"""The CUDA source of deformable attention: executed on the CPU, and compiled for three GPUs. No GPU is needed."""

import ctypes
from typing import Any

import pytest
import torch
from attn_cases import Case, case, cases
from attn_check import check
from cuda_on_cpu import kernels, of_pretended
from hypothesis import given, settings
from pretend_gpu import GPU, pretended

from pipeline.ops import cuda_driver, ms_deform_attn_cuda, nvrtc
from pipeline.ops.launching import Launch
from pipeline.ops.ms_deform_attn_cuda import Tuning
from pipeline.ops.nvrtc import Program

pytestmark = pytest.mark.usefixtures("poisoned")


@settings(max_examples=80, deadline=None)
@given(one=cases(channels=(8,), points=(2,)))
def test_equals_grid_sample(launch: Launch, one: Case) -> None:
    check(one, launch)


@settings(max_examples=20, deadline=None)
@given(one=cases(channels=(3, 12), points=(4,)))
def test_equals_grid_sample_with_few_channels_and_small_blocks(launch: Launch, one: Case) -> None:
    check(one, launch, tuning=Tuning(threads=32, load_bytes=8))


@pytest.mark.parametrize(("kind", "rtol"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_formats(kind: torch.dtype, rtol: float, launch: Launch) -> None:
    for seed in range(5):
        check(case([(5, 7), (3, 4)], b=2, q=9, channels=16, seed=seed).to(dtype=kind), launch, rtol)


def test_many_queries_of_four_larger_levels(launch: Launch) -> None:
    check(case([(25, 38), (13, 19), (7, 10), (4, 5)], b=2, q=150, heads=8, channels=32), launch)


def test_levels_of_real_size(launch: Launch) -> None:
    check(case([(100, 152), (50, 76), (25, 38), (13, 19)], q=3000, heads=8, channels=32), launch)


def test_the_check_is_fit_for_a_gpu(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    one = case([(5, 7), (3, 4)], b=2, q=9, channels=16)
    with pretended(monkeypatch):
        check(one.to(GPU), of_pretended(launch))


def test_points_without_end_read_zero_and_those_that_are_no_number_are_noticed(launch: Launch) -> None:
    one = case([(5, 7), (3, 4)], q=3, channels=8)
    one.locations[0, 0] = torch.inf
    one.locations[0, 1, 0, 1, 2] = torch.nan
    arguments = one.value, one.shapes, one.locations, one.weights
    found = ms_deform_attn_cuda.attend(*arguments, launch=launch).view(3, 2, 8)
    assert (found[0] == 0).all()
    assert found[1, 0].isnan().all()
    assert torch.isfinite(found[1, 1]).all()
    assert torch.isfinite(found[2]).all()
    grad = torch.ones(1, 3, 16)
    _, by_location, _ = ms_deform_attn_cuda.attend_backward(grad, *arguments, deterministic=False, launch=launch)
    assert (by_location[0, 0] == 0).all()
    assert by_location[0, 1, 0, 1, 2].isnan().any()


def test_values_that_are_parts_of_others_are_read_where_they_are_aligned(launch: Launch) -> None:
    one = case([(5, 7)], b=2, channels=8)
    wide = torch.full((2, 35, 2, 9), torch.nan)
    wide[..., 1:] = one.value
    check(Case(wide[..., 1:], one.shapes, one.locations, one.weights), launch)


def test_what_the_kernels_cannot_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.empty(1, 1, 1, 1)
    assert "on cpu" in ms_deform_attn_cuda.unable(value, [(1, 1)])

    class OnGpu:
        """Stands for a tensor of a GPU."""

        def __init__(self, dtype: torch.dtype, tokens: int = 9) -> None:
            self.device, self.dtype, self.shape = torch.device("cuda"), dtype, torch.Size([1, tokens, 8, 32])

    def why(value: Any, levels: int = 1) -> str:
        return ms_deform_attn_cuda.unable(value, [(1, 1)] * levels)

    monkeypatch.setattr(cuda_driver, "missing", lambda: "")
    assert why(OnGpu(torch.bfloat16)) == ""
    assert "float64" in why(OnGpu(torch.float64))
    assert "at most 8 levels" in why(OnGpu(torch.float32), levels=9)
    assert "too many values" in why(OnGpu(torch.float32, tokens=2**23))
    monkeypatch.setattr(cuda_driver, "missing", lambda: "torch sees no GPU")
    assert why(OnGpu(torch.float32)) == "torch sees no GPU"


def common_programs() -> set[Program]:
    """What heads and detectors would run: 4 levels of 32 channels a head, and a box's one level of 16."""
    found: set[Program] = set()

    def remember(program: Program, kernel: str, *grid: Any) -> None:
        assert kernel in kernels(program.file)
        assert isinstance(grid[2], ctypes.Structure)
        found.add(program)

    for levels, channels, kind in ((4, 32, torch.float32), (4, 32, torch.float16), (1, 16, torch.bfloat16)):
        one = case([(4, 4)] * levels, channels=channels).to(dtype=kind)
        arguments = one.value, one.shapes, one.locations, one.weights
        out = ms_deform_attn_cuda.attend(*arguments, launch=remember)
        ms_deform_attn_cuda.attend_backward(out, *arguments, deterministic=False, launch=remember)
    return found


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_compiles_without_a_gpu(arch: str) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is absent: this torch is no CUDA build")
    programs = common_programs()
    assert len(programs) == 6
    for program in programs:
        assert dict(program.macros)["VEC"] in ("4", "8")
        code = nvrtc.compile_program(program, arch)
        assert code[:4] == b"\x7fELF"
        for kernel in kernels(program.file):
            assert kernel.encode() in code
