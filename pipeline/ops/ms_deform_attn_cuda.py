"""The kernels of ms_deform_attn.cu and ms_deform_attn_backward.cu: their arguments, macros and grids, and results."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from . import cuda_driver
from .launching import TYPE_NAMES, Launch, vector_width
from .ms_deform_attn_entries import Shapes, cat, groups, without_rim
from .nvrtc import Program

MAX_LEVELS = 8
READ = (torch.float32, torch.float16, torch.bfloat16)
"""Formats of values that the kernels read."""
FLOATS_AT_ONCE = 1 << 26
"""The deterministic gradient writes every sample down; so many numbers of them at a time."""


@dataclass(frozen=True)
class Tuning:
    """What changes the speed and not the result. The defaults are guesses: no GPU has measured them yet."""

    load_bytes: int = 16
    """A thread reads so many bytes of values at a time."""
    threads: int = 128
    """In a block."""


TUNING = Tuning()


class _Level(ctypes.Structure):
    _fields_ = (("h", ctypes.c_int), ("w", ctypes.c_int), ("first", ctypes.c_int))


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("locations", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("result", ctypes.c_void_p),
        ("by_value", ctypes.c_void_p),
        ("by_location", ctypes.c_void_p),
        ("by_weight", ctypes.c_void_p),
        ("rows", ctypes.c_longlong),
        ("levels", _Level * MAX_LEVELS),
        ("levels_count", ctypes.c_int),
        ("tokens", ctypes.c_int),
        ("queries", ctypes.c_int),
        ("heads", ctypes.c_int),
        ("channels", ctypes.c_int),
    )


def unable(value: Tensor, shapes: Shapes) -> str:
    """Why the kernels cannot read these values here, one clause; empty where they can."""
    if value.device.type != "cuda":
        return f"the values are on {value.device.type}"
    if value.dtype not in READ:
        return f"they do not read {value.dtype}"
    if len(shapes) > MAX_LEVELS:
        return f"they read at most {MAX_LEVELS} levels, these are {len(shapes)}"
    if value.shape[1:].numel() >= 2**31:
        return "an image has too many values"
    return cuda_driver.missing()


def attend(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    *,
    tuning: Tuning | None = None,
    launch: Launch = cuda_driver.launch,
) -> Tensor:
    """`ms_deform_attn`, in the dtype of `value`. "b q (m d)" """
    tuning = tuning or TUNING
    b, q, m = weights.shape[:3]
    out = value.new_empty(b, q, m * value.shape[3])
    if not weights.numel():
        return out.zero_()
    value, locations, weights = value.contiguous(), locations.float().contiguous(), weights.float().contiguous()
    arguments = _arguments(value, shapes, locations, weights, out)
    vec = vector_width(value.shape[3], [value, out], load_bytes=tuning.load_bytes)
    program = Program("ms_deform_attn.cu", _macros(value, weights, vec))
    blocks = _blocks(out.numel() // vec, tuning)
    launch(program, "ms_deform_attn_forward", blocks, tuning.threads, arguments, out.device)
    return out


def attend_backward(
    grad: Tensor,
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    *,
    deterministic: bool,
    tuning: Tuning | None = None,
    launch: Launch = cuda_driver.launch,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each in its own dtype, from that of the result "b q (m d)".

    deterministic: the same bits every time. Only the gradient of the values needs care: it is then summed by
    PyTorch's `index_add_`, which sorts, over samples that are written down; many times slower.
    """
    tuning = tuning or TUNING
    if not weights.numel():
        return torch.zeros_like(value), torch.zeros_like(locations), torch.zeros_like(weights)
    dtypes = value.dtype, locations.dtype, weights.dtype
    grad = grad.to(value.dtype).contiguous()
    value, locations, weights = value.contiguous(), locations.float().contiguous(), weights.float().contiguous()
    arguments = _arguments(value, shapes, locations, weights, grad)
    by_location, by_weight = torch.empty_like(locations), torch.empty_like(weights)
    arguments.by_location, arguments.by_weight = by_location.data_ptr(), by_weight.data_ptr()
    vec = vector_width(value.shape[3], [value, grad], load_bytes=tuning.load_bytes)
    program = Program("ms_deform_attn_backward.cu", _macros(value, weights, vec))
    blocks = _blocks(weights.numel(), tuning)
    launch(program, "ms_deform_attn_points", blocks, tuning.threads, arguments, value.device)
    if deterministic:
        by_value = _summed_in_order(grad, value, shapes, locations, weights)
    else:
        by_value = value.new_zeros(value.shape, dtype=torch.float32)
        arguments.by_value = by_value.data_ptr()
        blocks = _blocks(grad.numel() // vec, tuning)
        launch(program, "ms_deform_attn_scatter", blocks, tuning.threads, arguments, value.device)
    return by_value.to(dtypes[0]), by_location.to(dtypes[1]), by_weight.to(dtypes[2])


def _summed_in_order(grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the values, float32 "b s m d", on any device; without atomic sums where PyTorch may not use them."""
    m, d = value.shape[2:]
    rows, start = grad.float().view(-1, d), 0
    found: list[Tensor] = []
    for table, entries in groups(value, shapes, locations, weights):
        spread = torch.zeros_like(table)
        step = max(1, FLOATS_AT_ONCE // (d * entries.columns.shape[1]))
        for columns, values in zip(entries.columns.split(step), entries.values().split(step), strict=True):
            samples = values[:, :, None] * rows[start : start + len(values), None]
            spread.index_add_(0, columns.flatten(), samples.flatten(0, 1))
            start += len(values)
        found.append(without_rim(spread.view(-1, m, d), shapes))
    return cat(found)


def _macros(value: Tensor, weights: Tensor, vec: int) -> tuple[tuple[str, str], ...]:
    return ("TYPE", TYPE_NAMES[value.dtype]), ("VEC", str(vec)), ("POINTS", str(weights.shape[4]))


def _arguments(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, result: Tensor) -> _Arguments:
    """Without the gradients. All tensors are contiguous."""
    _, tokens, heads, channels = value.shape
    arguments = _Arguments(
        value=value.data_ptr(),
        locations=locations.data_ptr(),
        weights=weights.data_ptr(),
        result=result.data_ptr(),
        rows=weights.shape[:3].numel(),
        levels_count=len(shapes),
        tokens=tokens,
        queries=weights.shape[1],
        heads=heads,
        channels=channels,
    )
    firsts: Sequence[int] = list(accumulate((h * w for h, w in shapes), initial=0))
    for level, (h, w), first in zip(arguments.levels, shapes, firsts, strict=False):
        level.h, level.w, level.first = h, w, first
    return arguments


def _blocks(threads: int, tuning: Tuning) -> tuple[int, int]:
    return -(-threads // tuning.threads), 1
