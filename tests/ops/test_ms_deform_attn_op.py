"""Deformable attention as an operator of torch: schema, autograd, torch.compile, autocast; and absent from exports."""

from typing import Any

import pytest
import torch
from attn_cases import Case, case
from torch import Tensor, nn

from pipeline.ops.ms_deform_attn import ms_deform_attn

# opcheck itself looks at the gradients of its copies
OPCHECK = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
SHAPES = [(5, 7), (3, 4)]
FLAT = [5, 7, 3, 4]


def leaves(one: Case, *wanted: bool) -> tuple[Any, ...]:
    value, locations, weights = (
        part.requires_grad_(need) for part, need in zip((one.value, one.locations, one.weights), wanted, strict=True)
    )
    return value, FLAT, locations, weights


@OPCHECK
@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, False, False)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_opcheck(kind: torch.dtype, wanted: tuple[bool, bool, bool]) -> None:
    arguments = leaves(case(SHAPES, b=2).to(dtype=kind), *wanted)
    torch.library.opcheck(torch.ops.featcache.ms_deform_attn.default, arguments)


@OPCHECK
def test_opcheck_of_the_gradient() -> None:
    arguments = leaves(case(SHAPES, b=2), False, False, False)
    torch.library.opcheck(
        torch.ops.featcache.ms_deform_attn_backward.default, (torch.randn(2, 5, 6), *arguments, False)
    )


def test_compiles_whole_and_for_other_numbers_of_queries() -> None:
    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value * 2, SHAPES, locations, weights).square()

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=True)
    for q in (5, 3):
        value, _, locations, weights = leaves(case(SHAPES, b=2, q=q), True, True, True)
        parts = value, locations, weights
        grads = [torch.autograd.grad(run(*parts).sum(), parts) for run in (attend, compiled)]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)


def test_autocast_changes_no_format() -> None:
    value, flat, locations, weights = leaves(case(SHAPES, b=2), True, True, True)
    plain = torch.ops.featcache.ms_deform_attn(value, flat, locations, weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.ops.featcache.ms_deform_attn(value, flat, locations, weights), plain)
        half = torch.ops.featcache.ms_deform_attn(value.bfloat16(), flat, locations, weights)
        half.float().sum().backward()
    assert (plain.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert value.grad.dtype == torch.float32


def test_an_exported_model_holds_no_operator_of_ours() -> None:
    class Attention(nn.Module):
        def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ms_deform_attn(value, SHAPES, locations, weights)

    one = case(SHAPES, b=2)
    arguments = one.value, one.locations, one.weights
    program = torch.export.export(Attention(), arguments)
    assert "featcache" not in str(program.graph)
    assert "grid_sampler" in str(program.graph)
    torch.testing.assert_close(program.module()(*arguments), Attention()(*arguments))
