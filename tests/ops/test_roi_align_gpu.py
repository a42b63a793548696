"""RoIAlign's kernels on a GPU: the cases that run on the CPU elsewhere, and what only a device has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from roi_cases import Case, cases
from roi_check import check, stored
from torch import Tensor

from pipeline.ops import cuda_driver
from pipeline.ops.level import Level
from pipeline.ops.roi_align import roi_align
from pipeline.ops.roi_align_op import flat_geometry
from pipeline.ops.roi_geometry import Geometry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(bool(cuda_driver.missing()), reason=f"no GPU for the kernels: {cuda_driver.missing()}"),
]
DEVICE = torch.device("cuda")
SOME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SOME
@given(case=cases(channels=(8,), levels=(2,), ratios=(-1, 0, 2, 5)))
def test_equals_the_reference(case: Case) -> None:
    check(case.to(DEVICE))


@SOME
@given(case=cases(channels=(3,), levels=(1, 3), ratios=(3,)))
def test_equals_the_reference_on_few_channels(case: Case) -> None:
    check(case.to(DEVICE))


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
def test_every_format_and_mixtures(kinds: tuple[torch.dtype, ...], rtol: float) -> None:
    @settings(max_examples=15, deadline=None)
    @given(cases(channels=(16,), levels=(2,), ratios=(2,), upsamples=("bilinear",)))
    def run(case: Case) -> None:
        levels = [stored(level, kind) for level, kind in zip(case.levels, kinds, strict=True)]
        check(replace(case, levels=levels).to(DEVICE), rtol=rtol)

    run()


def many() -> tuple[Tensor, Tensor, Tensor]:
    """Maps and overlapping boxes of a real size."""
    generator = torch.Generator().manual_seed(0)
    fine, coarse = (
        torch.randn(1, 256, h, w, generator=generator).to(DEVICE, memory_format=torch.channels_last)
        for h, w in ((200, 304), (100, 152))
    )
    corner, side = torch.rand(100, 2, generator=generator) * 600, torch.rand(100, 2, generator=generator) * 500
    return fine, coarse, torch.cat([corner, corner + side], 1).to(DEVICE)


def gradients(fine: Tensor, coarse: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
    maps = fine.detach().requires_grad_(), coarse.detach().requires_grad_()
    pooled = roi_align([(maps[0], 4), (maps[1], 8)], [boxes], 32, backend="cuda")
    return torch.autograd.grad(pooled.square().sum(), maps)


def test_deterministic_gradient_has_the_same_bits_every_time() -> None:
    once, again = gradients(*many()), gradients(*many())
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
    torch.use_deterministic_algorithms(False)
    for exact, fast in zip(once, gradients(*many()), strict=True):
        assert torch.allclose(exact, fast, atol=1e-3 * exact.abs().max().item(), rtol=0)


def test_a_first_level_without_channels_lends_its_grid() -> None:
    fine, coarse, boxes = many()
    with_zeros, alone = (
        roi_align([(first, 4), (coarse, 8)], [boxes], 32, backend="cuda")
        for first in (torch.zeros_like(fine), fine[:, :0])
    )
    assert torch.allclose(alone, with_zeros, atol=1e-5, rtol=0)


def test_equals_torchvision_on_maps_of_real_size() -> None:
    torch.use_deterministic_algorithms(False)
    fine, coarse, boxes = many()
    for upsample in ("bilinear", "direct"):
        found, expected = (
            roi_align([(fine, 4), (coarse, 8)], [boxes], 32, upsample=upsample, backend=backend)
            for backend in ("cuda", "torchvision")
        )
        assert torch.allclose(found, expected, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_auto_takes_the_kernel_and_reads_nchw_too() -> None:
    fine, coarse, boxes = many()
    found = roi_align([(fine.contiguous(), 4), (coarse.contiguous(), 8)], [boxes], 32)
    assert torch.equal(found, roi_align([(fine, 4), (coarse, 8)], [boxes], 32, backend="cuda"))


def test_runs_on_the_current_stream() -> None:
    fine, coarse, boxes = many()
    expected = roi_align([(fine, 4), (coarse, 8)], [boxes], 32, backend="cuda")
    stream = torch.cuda.Stream()
    busy = torch.ones(8192, 8192, device=DEVICE)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.mm(busy, busy)
        doubled = fine * 2, coarse * 2  # not there yet when another stream would read them
        found = roi_align([(doubled[0], 4), (doubled[1], 8)], [boxes], 32, backend="cuda")
    stream.synchronize()
    assert torch.allclose(found, 2 * expected, atol=1e-5)


def test_opcheck() -> None:
    cells = [torch.randn(2, 5, 6, 4, device=DEVICE, requires_grad=True), torch.randn(2, 3, 3, 4, device=DEVICE)]
    none = [torch.empty(0, device=DEVICE)] * 2
    boxes = torch.tensor([[1.0, 2.0, 20.0, 30.0], [-4.0, 0.0, 36.0, 28.0]], device=DEVICE)
    geometry = Geometry((2, 0), (((5, 6),) * 2, ((3, 3),) * 2), (4.0, 8.0), 3, True, 2, True)
    torch.library.opcheck(torch.ops.featcache.roi_align.default, (cells, none, none, boxes, *flat_geometry(geometry)))


def test_compiles_under_autocast() -> None:
    torch.use_deterministic_algorithms(False)
    fine, coarse, boxes = many()

    def pool(one: Tensor, other: Tensor) -> Tensor:
        mix = torch.nn.functional.conv2d(one, torch.ones(256, 256, 1, 1, device=DEVICE) / 256)
        return roi_align([Level(mix, 4), Level(other, 8)], [boxes], 16, backend="cuda")

    with torch.autocast("cuda", torch.bfloat16):
        plain = pool(fine, coarse)
        compiled = torch.compile(pool, fullgraph=True)(fine, coarse)
    assert plain.dtype == torch.bfloat16
    assert torch.allclose(plain.float(), compiled.float(), atol=0.05)


def test_damaged_kept_code_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fine, coarse, boxes = many()
    levels = [(fine, 4), (coarse, 8)]
    cuda_driver.loaded.cache_clear()
    expected = roi_align(levels, [boxes], 16, backend="cuda")
    (kept,) = (tmp_path / "featcache/kernels").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    cuda_driver.loaded.cache_clear()
    assert torch.equal(roi_align(levels, [boxes], 16, backend="cuda"), expected)
    assert kept.stat().st_size > 1000
