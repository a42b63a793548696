"""`torch.ops.featcache.ms_deform_attn`: the operator that torch.compile, autograd and autocast see, and who runs it.

Autocast leaves it alone: it reads any mix of formats and sums in float32. Its gradient is an operator without one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import ms_deform_attn_cpu, ms_deform_attn_cuda

_LIBRARY = torch.library.Library("featcache", "FRAGMENT")
_LIBRARY.define(
    "ms_deform_attn(Tensor value, SymInt[] shapes, Tensor locations, Tensor weights) -> Tensor",
    tags=[torch.Tag.pt2_compliant_tag],
)
_LIBRARY.define(
    "ms_deform_attn_backward(Tensor grad, Tensor value, SymInt[] shapes, Tensor locations, Tensor weights"
    ", bool deterministic) -> (Tensor, Tensor, Tensor)",
    tags=[torch.Tag.pt2_compliant_tag],
)


def ms_deform_attn_op(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """`ms_deform_attn` by the code of this project that runs on the device of `value`. "b q (m d)" """
    return torch.ops.featcache.ms_deform_attn(value, [side for hw in shapes for side in hw], locations, weights)


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


@torch.library.register_fake("featcache::ms_deform_attn", lib=_LIBRARY)
def _fake(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    del shapes, weights
    return value.new_empty((value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]))


@torch.library.register_fake("featcache::ms_deform_attn_backward", lib=_LIBRARY)
def _fake_backward(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, shapes, deterministic
    found = [one.new_empty(one.shape) for one in (value, locations, weights)]
    return found[0], found[1], found[2]


def _forward_on(module: Any) -> Any:
    def forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
        return module.attend(value, _pairs(shapes), locations, weights)

    return forward


def _backward_cpu(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    del deterministic  # it always is
    return ms_deform_attn_cpu.attend_backward(grad, value, _pairs(shapes), locations, weights)


def _backward_cuda(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return ms_deform_attn_cuda.attend_backward(
        grad, value, _pairs(shapes), locations, weights, deterministic=deterministic
    )


_LIBRARY.impl("ms_deform_attn", _forward_on(ms_deform_attn_cpu), "CPU")
_LIBRARY.impl("ms_deform_attn", _forward_on(ms_deform_attn_cuda), "CUDA")
_LIBRARY.impl("ms_deform_attn_backward", _backward_cpu, "CPU")
_LIBRARY.impl("ms_deform_attn_backward", _backward_cuda, "CUDA")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    value, shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)
    ctx.shapes = shapes


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    value, locations, weights = ctx.saved_tensors
    by_value, by_location, by_weight = torch.ops.featcache.ms_deform_attn_backward(
        grad, value, ctx.shapes, locations, weights, torch.are_deterministic_algorithms_enabled()
    )
    return by_value, None, by_location, by_weight


torch.library.register_autograd("featcache::ms_deform_attn", _backward, setup_context=_setup, lib=_LIBRARY)
