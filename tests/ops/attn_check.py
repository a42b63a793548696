"""The kernels of deformable attention against `grid_sample` and the CPU, wherever `launch` runs them."""

import torch
from attn_cases import Case, gradients

from pipeline.ops import cuda_driver, ms_deform_attn_cuda
from pipeline.ops.launching import Launch
from pipeline.ops.ms_deform_attn import by_grid_sample
from pipeline.ops.ms_deform_attn_cpu import attend_backward
from pipeline.ops.ms_deform_attn_cuda import Tuning

FAR = 64
"""Cells from the first beyond which float32 rounds a position by a millionth of a cell and more."""


def check(
    one: Case, launch: Launch = cuda_driver.launch, rtol: float = 0.0, tuning: Tuning = ms_deform_attn_cuda.TUNING
) -> None:
    """Forward and both backwards, on the device of the case. `rtol` is the rounding of the values' format.

    Gradients of locations jump where a point stands on a cell; the CPU's formulation rounds positions as the kernels
    do, `grid_sample` does not. In float64 both agree on the CPU (test_ms_deform_attn.py).
    """
    found = ms_deform_attn_cuda.attend(one.value, one.shapes, one.locations, one.weights, tuning=tuning, launch=launch)
    assert found.dtype == one.value.dtype
    assert found.device == one.value.device
    on_cpu = one.to(torch.device("cpu"))  # `grid_sample` has no deterministic gradient on a GPU
    exact = Case(on_cpu.value.double(), one.shapes, on_cpu.locations.double(), on_cpu.weights.double())
    expected = by_grid_sample(exact.value, exact.shapes, exact.locations, exact.weights)
    assert torch.allclose(found.cpu().double(), expected, atol=1e-4 if _far(one) else 1e-5, rtol=rtol)
    grad = torch.linspace(-1, 1, found.numel(), device=found.device).view(found.shape).to(found.dtype)
    # of values and weights, which are smooth
    smooth = gradients(by_grid_sample, exact, grad.cpu().double())
    wanted = attend_backward(grad.cpu(), on_cpu.value, one.shapes, on_cpu.locations, on_cpu.weights)
    for deterministic in (False, True):
        grads = ms_deform_attn_cuda.attend_backward(
            grad,
            one.value,
            one.shapes,
            one.locations,
            one.weights,
            deterministic=deterministic,
            tuning=tuning,
            launch=launch,
        )
        for part, want, like in zip(grads, wanted, (one.value, one.locations, one.weights), strict=True):
            assert part.dtype == like.dtype
            assert part.shape == like.shape
            scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
            assert torch.allclose(part.cpu().float(), want.float(), atol=1e-5 * scale, rtol=rtol)
        for index in (0, 2):
            scale = max(1.0, smooth[index].abs().max().item()) if smooth[index].numel() else 1.0
            tolerance = 1e-4 if _far(one) else 1e-5
            assert torch.allclose(grads[index].cpu().double(), smooth[index], atol=tolerance * scale, rtol=rtol)


def _far(one: Case) -> bool:
    """Whether positions are so large that float32 rounds them visibly."""
    cells = torch.tensor([(w, h) for h, w in one.shapes], device=one.locations.device)[:, None]
    return bool((one.locations.abs() * cells > FAR).any())
