"""The CUDA source of RoIAlign: its arithmetic executed on the CPU, and compiled for three GPUs. No GPU is needed."""

import ctypes
from dataclasses import replace
from typing import Any

import pytest
import torch
from cuda_on_cpu import kernels, of_pretended
from hypothesis import given, settings
from pretend_gpu import GPU, pretended
from roi_cases import Case, cases
from roi_check import check, stored

from pipeline.ops import nvrtc, roi_align_cuda
from pipeline.ops.launching import Launch
from pipeline.ops.level import Level
from pipeline.ops.nvrtc import Program
from pipeline.ops.roi_align import operands
from pipeline.ops.roi_align_cuda import Tuning
from pipeline.ops.roi_geometry import Geometry

pytestmark = pytest.mark.usefixtures("poisoned")

RATIOS = (-1, 0, 2, 5)  # two builds: samples known, and not, at compile time
SOME = settings(max_examples=60, deadline=None)


@SOME
@given(case=cases(channels=(8,), levels=(2,), ratios=RATIOS))
def test_equals_the_reference(launch: Launch, case: Case) -> None:
    check(case, launch)


@SOME
@given(case=cases(channels=(3,), levels=(3,), ratios=(3,), upsamples=("bilinear",)))
def test_equals_the_reference_on_three_levels_of_few_channels(launch: Launch, case: Case) -> None:
    check(case, launch, tuning=Tuning(run=2, threads=32))


@pytest.mark.parametrize(
    ("kinds", "rtol"),
    [
        ((torch.float16, torch.float16), 2**-11),
        ((torch.bfloat16, torch.bfloat16), 2**-8),
        ((torch.uint8, torch.uint8), 0.0),
        ((torch.uint8, torch.bfloat16), 2**-8),
        ((torch.float32, torch.float16), 0.0),
    ],
)
def test_every_format_and_mixtures(kinds: tuple[torch.dtype, ...], rtol: float, launch: Launch) -> None:
    @settings(max_examples=15, deadline=None)
    @given(cases(channels=(16,), levels=(2,), ratios=(2,), upsamples=("bilinear",)))
    def run(case: Case) -> None:
        levels = [stored(level, kind) for level, kind in zip(case.levels, kinds, strict=True)]
        check(replace(case, levels=levels), launch, rtol)

    run()


def test_the_check_is_fit_for_a_gpu(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    fine, coarse = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 3, 3)
    boxes = [torch.tensor([[1.0, 2.0, 20.0, 30.0], [-4.0, 0.0, 36.0, 28.0]]), torch.zeros(0, 4)]
    options = {"aligned": True, "sampling_ratio": 2, "upsample": "bilinear"}
    case = Case([Level(fine, 4), Level(coarse, 8)], boxes, 3, options)
    with pretended(monkeypatch):
        check(case.to(GPU), of_pretended(launch))


@pytest.mark.parametrize("upsample", ["bilinear", "direct"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_many_bins_on_larger_maps(launch: Launch, upsample: str, ratio: int) -> None:
    torch.manual_seed(0)
    fine, coarse = torch.randn(1, 8, 50, 76), torch.randn(1, 8, 25, 38)
    boxes = torch.tensor(
        [[3.2, 7.9, 301.3, 190.4], [100, 100, 131, 129], [50, 0, 60, 200], [-40, 150, 90, 260], [8, 8, 8.5, 9]]
    )
    options = {"aligned": True, "sampling_ratio": ratio, "upsample": upsample}
    check(Case([Level(fine, 4), Level(coarse, 8)], [boxes], 32, options), launch)


def test_reads_tokens_slices_and_padded_maps_in_place(launch: Launch) -> None:
    """Images of different size; levels that are parts of one token array and of a wider map; padding never read."""
    memory = torch.full((2, 60, 8), torch.nan)
    padded = torch.full((2, 16, 9, 11), torch.nan).contiguous(memory_format=torch.channels_last)
    sizes, coarse = [(9, 7), (5, 11)], [(5, 4), (3, 6)]
    for i, ((h, w), (y, x)) in enumerate(zip(sizes, coarse, strict=True)):
        padded[i, 8:, :h, :w] = torch.randn(8, h, w)
        memory[i, 30 : 30 + y * x] = torch.randn(y * x, 8)
    boxes = torch.tensor([[1.0, 2.0, 30.0, 50.0], [-5.0, -5.0, 20.0, 20.0]])
    options = {"aligned": True, "sampling_ratio": 2, "upsample": "bilinear"}
    levels = [Level(padded[:, 8:], 4, sizes), Level(memory[:, 30:55], 8, coarse)]
    check(Case(levels, [boxes, boxes], 5, options), launch)


def test_a_first_level_without_channels_lends_its_grid(launch: Launch) -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[3.2, 7.9, 51.3, 40.4], [-9.0, 5.0, 30.0, 70.0]])
    options = {"aligned": True, "sampling_ratio": 2, "upsample": "bilinear"}
    levels = [Level(torch.zeros(1, 0, 12, 15), 4), Level(torch.randn(1, 8, 6, 8), 8)]
    check(Case(levels, [boxes], 7, options), launch)


def test_numbers_that_are_none_and_enormous_boxes_end(launch: Launch) -> None:
    maps = torch.randn(1, 8, 6, 6)
    strange = torch.tensor(
        [[torch.nan] * 4, [0.0, 0.0, torch.inf, 9.0], [-1e30, 0.0, 1e30, 9.0], [-3e9, -3e9, 3e9, 3e9]]
    )
    for ratio in (0, 2):
        geometry = Geometry((4,), (((6, 6),),), (4.0,), 3, True, ratio, True)
        found = roi_align_cuda.pool(*operands([Level(maps, 4)]), strange, geometry, launch=launch)
        assert torch.isfinite(found).all()
        grads = roi_align_cuda.unpool(found, strange, geometry, [(1, 6, 6, 8)], [0], deterministic=True, launch=launch)
        assert torch.isfinite(grads[0]).all()


def test_infinite_and_missing_numbers_survive_the_formats(launch: Launch) -> None:
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 65504.0, 6e-8, 1e-5, -0.0, 1.0])
    for kind in (torch.float16, torch.bfloat16):
        maps = values.to(kind)[None, :, None, None].expand(1, 8, 4, 4)
        geometry = Geometry((1,), (((4, 4),),), (4.0,), 1, True, 2, True)
        found = roi_align_cuda.pool(
            *operands([Level(maps, 4)]), torch.tensor([[4.0, 4, 8, 8]]), geometry, launch=launch
        )
        assert torch.allclose(found[0, 0, 0].float(), values.to(kind).float(), equal_nan=True, rtol=0, atol=0)


class Recorder:
    """A launcher that only remembers what it should have run."""

    def __init__(self) -> None:
        self.programs: dict[Program, str] = {}

    def __call__(self, program: Program, kernel: str, *grid: Any) -> None:
        assert isinstance(grid[2], ctypes.Structure)
        self.programs[program] = kernel


def common_programs() -> dict[Program, str]:
    """What the heads would run: float32; float16; uint8 beside bfloat16; samples known at compile time or not."""
    recorder = Recorder()
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    for kinds, ratio, composite in (
        ((torch.float32, torch.float32), 2, True),
        ((torch.uint8, torch.bfloat16), 2, True),
        ((torch.float16, torch.float16), 0, False),
    ):
        maps = [Level(torch.zeros(1, 256, 32 // stride, 32 // stride), stride) for stride in (4, 8)]
        levels = [stored(level, kind) for level, kind in zip(maps, kinds, strict=True)]
        geometry = Geometry((1,), tuple(level.grid for level in levels), (4.0, 8.0), 32, True, ratio, composite)
        out = roi_align_cuda.pool(*operands(levels), boxes, geometry, launch=recorder)
        shapes = [tuple(level.cells.shape) for level in levels]
        for deterministic in (False, True):
            roi_align_cuda.unpool(out, boxes, geometry, shapes, [1], deterministic=deterministic, launch=recorder)
    return recorder.programs


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_compiles_without_a_gpu(arch: str) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is absent: this torch is no CUDA build")
    programs = common_programs()
    assert len(programs) == 6
    for program in programs:
        assert ("VEC", "1") not in program.macros
        code = nvrtc.compile_program(program, arch)
        assert code[:4] == b"\x7fELF"
        for kernel in kernels(program.file):
            assert kernel.encode() in code
