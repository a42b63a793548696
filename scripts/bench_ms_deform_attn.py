"""Multi-scale deformable attention: ours beside `grid_sample` and what transformers and mmcv have, where installed.

    OMP_NUM_THREADS=1 python scripts/bench_ms_deform_attn.py                 on the CPU
    python scripts/bench_ms_deform_attn.py --device cuda                     on a GPU
    python scripts/bench_ms_deform_attn.py --device cuda --dtype bfloat16 --shapes hdetr box32

Shapes of real calls: the encoders of a head on maps of DEIMv2-Femto and H-DETR, and on the grids of boxes. Rounds visit
the rows in random order; times are medians, on a CPU of processor time, because other programs take their turns there.
Output and gradients of each row are first compared with `grid_sample` in float64; a row of this project that is wrong
ends the run with status 1 (others may round locations to half precision, which moves points by whole cells). The error
is the largest relative L2 difference of the four tensors.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from kernel_timing import determinism, machine, pass_milliseconds, rounds_of
from torch import Tensor

from pipeline.detectors.device import torch_device
from pipeline.ops import ms_deform_attn_cuda
from pipeline.ops.ms_deform_attn import by_grid_sample, ms_deform_attn

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
CALLS = {"cuda": 10, "cpu": 1}  # in one timing
HEADS, POINTS = 8, 4


@dataclass(frozen=True)
class Call:
    """A call as a head or detector makes it: every token is a query."""

    what: str
    b: int
    levels: tuple[tuple[int, int], ...]
    width: int


CALLS_MADE = {
    "femto": Call("image encoder, DEIMv2-Femto, 4 images", 4, ((26, 26), (13, 13)), 96),
    "box16": Call("box encoder, 32 boxes of 16 x 16, 64 channels", 32, ((16, 16),), 64),
    "box32": Call("box encoder, 20 boxes of 32 x 32, 128 channels", 20, ((32, 32),), 128),
    "hdetr": Call("image encoder, H-DETR, 800 x 1216", 1, ((100, 152), (50, 76), (25, 38), (13, 19)), 256),
}


@dataclass
class Row:
    """One way to attend: `run(value, locations, weights)` gives "b q (m d)"."""

    name: str
    run: Callable[..., Tensor]
    deterministic: bool = False
    own: bool = True
    """Of this project."""


def main() -> None:
    """Print one table for each shape."""
    options = _options()
    device = torch_device(options.device)
    ms_deform_attn_cuda.TUNING = dataclasses.replace(
        ms_deform_attn_cuda.TUNING, threads=options.threads, load_bytes=options.load_bytes
    )
    print(f"{machine(device)}, {options.dtype}; {HEADS} heads, {POINTS} points a level")
    wrong = 0
    for shape in options.shapes:
        call = CALLS_MADE[shape]
        inputs = _inputs(call, device, getattr(torch, options.dtype))
        rows = _rows(call, device)
        errors = _errors(rows, call, inputs)
        times = _measure(rows, inputs, options.rounds)
        print(f"\n{shape}: {call.what}\n\n| | error | forward ms | x | forward + backward ms | x |\n|{'---|' * 6}")
        for row in rows:
            cells = [f"{errors[row.name]:.1e}"]
            for backward in (False, True):
                spent = times[row.name, backward]
                cells += [f"{spent:.3f}", f"{times[rows[0].name, backward] / spent:.2f}"]
            print(f"| {row.name} | {' | '.join(cells)} |", flush=True)
            if row.own and not errors[row.name] <= TOLERANCE[inputs[0].dtype]:
                print(f"{row.name}: differs from grid_sample by {errors[row.name]:.2e}", file=sys.stderr)
                wrong += 1
    sys.exit(1 if wrong else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the values")
    parser.add_argument("--shapes", nargs="+", choices=tuple(CALLS_MADE), default=tuple(CALLS_MADE))
    parser.add_argument("--rounds", type=int, default=7)
    tuning = parser.add_argument_group("tuning of our kernels", "changes the speed, not the result")
    for field in dataclasses.fields(ms_deform_attn_cuda.Tuning):
        tuning.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    return parser.parse_args()


def _inputs(call: Call, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations a few cells around the query's own, and weights.

    No point lies within a hundredth of a cell's centre line: there the gradient of locations jumps with rounding.
    """
    generator = torch.Generator().manual_seed(0)
    tokens, levels = sum(h * w for h, w in call.levels), len(call.levels)
    value = torch.randn(call.b, tokens, HEADS, call.width // HEADS, generator=generator)
    centres = [
        torch.stack(torch.meshgrid((torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h, indexing="xy"), -1)
        for h, w in call.levels
    ]
    own = torch.cat([one.flatten(0, 1) for one in centres])[None, :, None, None, None]
    offsets = 2 * torch.randn(call.b, tokens, HEADS, levels, POINTS, 2, generator=generator)
    sides = torch.tensor([(w, h) for h, w in call.levels])[:, None]
    places = own * sides + offsets - 0.5
    locations = (places.floor() + 0.01 + 0.98 * (places - places.floor()) + 0.5) / sides
    weights = torch.randn(call.b, tokens, HEADS, levels * POINTS, generator=generator).softmax(-1)
    return value.to(device, dtype), locations.to(device), weights.view(locations.shape[:-1]).to(device)


def _rows(call: Call, device: torch.device) -> list[Row]:
    """The first is what the others are compared with."""
    shapes = list(call.levels)
    sides = torch.tensor(shapes, device=device)
    areas = [h * w for h, w in shapes]
    starts = torch.tensor([sum(areas[:i]) for i in range(len(areas))], device=device)
    rows = [Row("grid_sample", lambda v, x, a: by_grid_sample(v, shapes, x, a))]
    if module := _installed("transformers.models.deformable_detr.modeling_deformable_detr"):
        peer = module.MultiScaleDeformableAttention()
        rows.append(
            Row("transformers", lambda v, x, a: peer(v, sides, shapes, starts, x.to(v), a.to(v), 64), own=False)
        )
    if module := _installed("mmcv.ops.multi_scale_deform_attn"):
        function, plain = module.MultiScaleDeformableAttnFunction, module.multi_scale_deformable_attn_pytorch
        if device.type == "cuda":
            rows.append(Row("mmcv", lambda v, x, a: function.apply(v, sides, starts, x.to(v), a.to(v), 64), own=False))
        else:
            rows.append(Row("mmcv", lambda v, x, a: plain(v, sides, x.to(v), a.to(v)), own=False))
    rows.append(Row("ours", lambda v, x, a: ms_deform_attn(v, shapes, x, a)))
    if device.type == "cuda":
        rows.append(Row("ours, deterministic", rows[-1].run, deterministic=True))
    return rows


def _installed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        return None


def _errors(rows: list[Row], call: Call, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Of each row the largest relative L2 difference of output and gradients to `grid_sample` in float64."""

    def everything(run: Callable[..., Tensor], parts: list[Tensor]) -> list[Tensor]:
        leaves = [part.detach().requires_grad_() for part in parts]
        found = run(*leaves)
        grad = torch.linspace(-1, 1, found.numel(), device=found.device).view(found.shape)
        return [found.detach(), *torch.autograd.grad(found, leaves, grad.to(found.dtype))]

    exact = everything(lambda v, x, a: by_grid_sample(v, list(call.levels), x, a), [part.double() for part in inputs])
    errors: dict[str, float] = {}
    for row in rows:
        with determinism(row.deterministic):
            found = everything(row.run, list(inputs))
        errors[row.name] = max(
            ((one.double() - want).norm() / want.norm()).item() for one, want in zip(found, exact, strict=True)
        )
    return errors


def _measure(rows: list[Row], inputs: tuple[Tensor, ...], rounds: int) -> dict[tuple[str, bool], float]:
    """(row, with backward) -> milliseconds of a call."""
    device = inputs[0].device
    jobs = {
        (row.name, backward): partial(
            pass_milliseconds,
            row.run,
            inputs,
            device,
            backward=backward,
            deterministic=row.deterministic,
            calls=CALLS[device.type],
            clock=time.process_time,
        )
        for row in rows
        for backward in (False, True)
    }
    return {job: statistics.median(some) for job, some in rounds_of(jobs, rounds).items()}


if __name__ == "__main__":
    main()
