"""RoIAlign as an operator of torch: schema, shapes without data, autograd, torch.compile, autocast; backend choice."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from roi_cases import Case, cases
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.ops import cuda_driver
from pipeline.ops.level import Level
from pipeline.ops.roi_align import operands, roi_align
from pipeline.ops.roi_align_op import flat_geometry, roi_align_op
from pipeline.ops.roi_geometry import Geometry

# opcheck itself looks at the gradients of its copies
OPCHECK = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
BOXES = torch.tensor([[1.0, 2.0, 20.0, 30.0], [-4.0, 0.0, 36.0, 28.0], [5.0, 5.0, 9.0, 30.0]])
GEOMETRY = Geometry((2, 1), (((5, 6),) * 2, ((3, 3),) * 2), (4.0, 8.0), 3, True, 2, True)


def arguments(kinds: tuple[torch.dtype, torch.dtype], *, wanted: tuple[bool, bool] = (True, True)) -> tuple[Any, ...]:
    torch.manual_seed(0)
    shapes = [(2, 5, 6, 4), (2, 3, 3, 4)]
    cells = [torch.randn(shape).to(kind) for shape, kind in zip(shapes, kinds, strict=True)]
    cells = [level.requires_grad_(need) for level, need in zip(cells, wanted, strict=True)]
    return cells, [torch.empty(0)] * 2, [torch.empty(0)] * 2, BOXES, *flat_geometry(GEOMETRY)


@OPCHECK
@pytest.mark.parametrize("wanted", [(True, True), (False, True), (False, False)])
def test_opcheck(wanted: tuple[bool, bool]) -> None:
    torch.library.opcheck(
        torch.ops.featcache.roi_align.default, arguments((torch.float32, torch.float32), wanted=wanted)
    )


@OPCHECK
def test_opcheck_uint8_and_bfloat16() -> None:
    cells, _, _, *rest = arguments((torch.float32, torch.bfloat16))
    stored = [torch.randint(0, 256, (2, 5, 6, 4), dtype=torch.uint8), cells[1]]
    scales = [torch.rand(2, 4), torch.empty(0)]
    torch.library.opcheck(torch.ops.featcache.roi_align.default, (stored, scales, scales, *rest))


@OPCHECK
def test_opcheck_of_the_gradient() -> None:
    grad = torch.randn(3, 3, 3, 4, requires_grad=True)
    shapes = [2, 5, 6, 4, 2, 3, 3, 4]
    for levels in ([0, 1], [1]):
        rest = (BOXES, *flat_geometry(GEOMETRY), shapes, levels, False)
        torch.library.opcheck(torch.ops.featcache.roi_align_backward.default, (grad, *rest))


@settings(max_examples=8, deadline=None)
@given(cases(dtype=torch.float64, channels=(1,), levels=(2,)))
def test_first_and_second_derivative(case: Case) -> None:
    cells, scales, offsets = operands(case.levels)
    geometry = Geometry(
        tuple(len(rows) for rows in case.boxes),
        tuple(level.grid for level in case.levels),
        tuple(level.stride for level in case.levels),
        2,
        case.options["aligned"],
        case.options["sampling_ratio"],
        case.options["upsample"] == "bilinear",
    )
    # small maps and few boxes: the second derivative is checked element by element
    cells = [level[:, :3, :3].detach().requires_grad_() for level in cells]
    grids = tuple(tuple((min(h, 3), min(w, 3)) for h, w in grid) for grid in geometry.grids)
    small = Geometry(**{**vars(geometry), "grids": grids})

    def run(*maps: Tensor) -> Tensor:
        return roi_align_op(list(maps), scales, offsets, torch.cat(case.boxes).double(), small)

    assert torch.autograd.gradcheck(run, cells)
    assert torch.autograd.gradgradcheck(run, cells)


def test_the_operator_is_the_function() -> None:
    fine, coarse = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 3, 3)
    levels = [Level(fine, 4), Level(coarse, 8)]
    found = roi_align_op(*operands(levels), BOXES, GEOMETRY).permute(0, 3, 1, 2)
    assert torch.allclose(found, roi_align(levels, [BOXES[:2], BOXES[2:]], 3), atol=1e-5)


def test_compiles_whole_and_for_other_numbers_of_boxes() -> None:
    def pool(fine: Tensor, coarse: Tensor, boxes: Tensor) -> Tensor:
        levels = [Level(fine, 4), Level(coarse, 8)]
        counts = (len(boxes),)
        geometry = Geometry(counts, tuple(level.grid for level in levels), (4.0, 8.0), 3, True, 2, True)
        pooled = roi_align_op(*operands(levels), boxes, geometry)
        return pooled.permute(0, 3, 1, 2) + roi_align(levels, [boxes], 3)

    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (3, 2):
        maps = [torch.randn(1, 4, 5, 6, requires_grad=True), torch.randn(1, 4, 3, 3, requires_grad=True)]
        grads = [torch.autograd.grad(run(*maps, BOXES[:count]).square().sum(), maps) for run in (pool, compiled)]
        for one, other in zip(*grads, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_autocast_changes_no_format() -> None:
    cells, *rest = arguments((torch.float32, torch.bfloat16))
    plain = torch.ops.featcache.roi_align(cells, *rest)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.ops.featcache.roi_align(cells, *rest), plain)
        half = torch.ops.featcache.roi_align([level.bfloat16() for level in cells], *rest)
    assert (plain.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    half.float().sum().backward()
    assert cells[0].grad.dtype == torch.float32


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "missing", lambda: "torch sees no GPU")
    with pytest.raises(PipelineError, match="'cuda' cannot run: torch sees no GPU") as caught:
        roi_align([(torch.zeros(1, 2, 4, 4), 4)], [BOXES], 3, backend="cuda")
    assert "auto" in caught.value.hint


def test_cuda_for_maps_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "missing", lambda: "")
    with pytest.raises(PipelineError, match="the maps are on cpu"):
        roi_align([(torch.zeros(1, 2, 4, 4), 4)], [BOXES], 3, backend="cuda")


def test_unknown_names_are_refused() -> None:
    maps: Any = [(torch.zeros(1, 2, 4, 4), 4)]
    for options in ({"backend": "triton"}, {"upsample": "nearest"}):
        with pytest.raises(PipelineError, match="unknown"):
            roi_align(maps, [BOXES], 3, **options)  # pyright: ignore[reportArgumentType]
