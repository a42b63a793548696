"""RoIAlign over C1 and an encoder map: our kernels, torchvision, and the path that makes the upsampled sum first.

    python scripts/bench_roi_align.py --device cuda                             the paper's sizes, on a GPU
    python scripts/bench_roi_align.py --device cuda --dtype bfloat16 --channels 128
    python scripts/bench_roi_align.py                                           small maps on the CPU: does it run?

Every row reads the same boxes of one image, in the memory order it likes best: ours channels-last, the others not.
Rounds visit the rows in random order; times are medians. Each row's output and gradient are first compared with the
reference in plain PyTorch; a row that is wrong ends the run with status 1. `MB` is the least traffic that a pass can
have, not what a row moves: forward, each map cell under a box read once and the output written once; backward, the
gradient of the output read once and that of each map, all of its cells, written once. `share` is that over the time, as
a part of the bandwidth of a plain copy.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from kernel_timing import determinism, machine, pass_milliseconds, rounds_of, wait
from torch import Tensor

from pipeline.detectors.device import torch_device
from pipeline.ops import roi_align_cuda
from pipeline.ops.level import Level
from pipeline.ops.roi_align import roi_align

STRIDES = (4, 8)
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}  # of values up to about 5
CALLS = {"cuda": 10, "cpu": 2}  # in one timing
COLUMNS = ("error", "forward ms", "x", "MB", "share", "forward + backward ms", "x", "MB", "share")


@dataclass
class Row:
    """One way to pool. `run` takes the maps it is timed with and gives "m c r r"."""

    name: str
    run: Callable[..., Tensor]
    maps: list[Tensor]
    read: float
    """Bytes of each map cell and channel, summed over what is under the boxes."""
    expected: Tensor
    backward: bool = True
    deterministic: bool = False


def main() -> None:
    """Print one table for each number of boxes."""
    options = _options()
    device = torch_device(options.device)
    roi_align_cuda.TUNING = dataclasses.replace(
        roi_align_cuda.TUNING, run=options.run, threads=options.threads, load_bytes=options.load_bytes
    )
    bandwidth = _copy_bandwidth(device)
    print(f"{machine(device)}; copy {bandwidth / 1e9:.0f} GB/s; {options}")
    wrong = 0
    for count in options.boxes:
        rows = _rows(options, device, count)
        errors = {row.name: _error(row, device) for row in rows}
        times = _measure(rows, options.rounds, device)
        base = {back: statistics.median(times[rows[0].name, back]) for back in (False, True)}
        print(f"\n{count} boxes\n| {' | '.join(['', *COLUMNS])} |\n|{'---|' * (1 + len(COLUMNS))}")
        for row in rows:
            cells = [f"{errors[row.name]:.1e}"]
            for backward in (False, True) if row.backward else (False,):
                taken, moved = statistics.median(times[row.name, backward]), least_bytes(row, backward)
                cells += [f"{taken:.3f}", f"{base[backward] / taken:.2f}", f"{moved / 1e6:.3f}"]
                cells.append(f"{moved / (taken / 1e3) / bandwidth:.0%}")
            cells += [""] * (len(COLUMNS) - len(cells))
            print(f"| {row.name} | {' | '.join(cells)} |")
            if not errors[row.name] <= TOLERANCE[row.expected.dtype]:
                print(f"{row.name}: differs from the reference by {errors[row.name]:.2e}", file=sys.stderr)
                wrong += 1
    sys.exit(1 if wrong else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--boxes", type=int, nargs="+", help="default 8 100 300, on the CPU 8")
    parser.add_argument("--channels", type=int, help="default 256, on the CPU 32")
    parser.add_argument("--input-hw", type=int, nargs=2, help="default 800 1216, on the CPU 256 384")
    parser.add_argument("--size", type=int, default=32, help="bins along each side")
    parser.add_argument("--sampling-ratio", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    tuning = parser.add_argument_group("tuning of our kernels", "changes the speed, not the result")
    for field in dataclasses.fields(roi_align_cuda.Tuning):
        tuning.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    options = parser.parse_args()
    full = options.device.startswith("cuda")
    options.boxes = options.boxes or ([8, 100, 300] if full else [8])
    options.channels = options.channels or (256 if full else 32)
    options.input_hw = options.input_hw or ([800, 1216] if full else [256, 384])
    return options


def _rows(options: argparse.Namespace, device: torch.device, count: int) -> list[Row]:
    """All ways to pool the same boxes; the first is what the others are compared with."""
    generator = torch.Generator().manual_seed(0)
    h, w = options.input_hw
    dtype = getattr(torch, options.dtype)
    maps = [torch.randn(1, options.channels, h // s, w // s, generator=generator).to(device, dtype) for s in STRIDES]
    boxes = _boxes(count, h, w, generator).to(device)
    channels_last = [one.contiguous(memory_format=torch.channels_last) for one in maps]
    settings: dict[str, Any] = {"sampling_ratio": options.sampling_ratio}

    def pool(backend: str, **more: Any) -> Callable[..., Tensor]:
        def run(*some: Tensor) -> Tensor:
            levels = list(zip(some, STRIDES, strict=False))
            return roi_align(levels, [boxes], options.size, backend=backend, **settings, **more)  # pyright: ignore

        return run

    under = [
        _cells_under(boxes, one.shape[-2:], stride) * options.channels
        for one, stride in zip(maps, STRIDES, strict=True)
    ]
    both, first = sum(under) * dtype.itemsize, under[0] * dtype.itemsize
    exact = [one.float() for one in maps]
    summed = pool("reference")(*exact).to(dtype)
    direct = pool("reference", upsample="direct")(*exact).to(dtype)
    single = pool("reference")(exact[0]).to(dtype)
    rows = [
        Row("upsample + add + torchvision", pool("torchvision"), maps, both, summed),
        Row("torchvision, C1 alone", pool("torchvision"), maps[:1], first, single),
    ]
    rows += [Row(f"{name}, C1 alone", run, maps[:1], first, single) for name, run in _others(boxes, options)]
    if not _has_kernels(device):
        rows.append(Row("ours on the CPU, C1 alone", pool("cpu"), channels_last[:1], first, single))
        rows.append(Row("ours on the CPU, two maps", pool("cpu"), channels_last, both, summed))
        rows.append(Row("ours on the CPU, direct", pool("cpu", upsample="direct"), channels_last, both, direct))
        return rows
    stored = [_stored(one, stride) for one, stride in zip(channels_last, STRIDES, strict=True)]
    meant = [level.values * level.scale[:, :, None, None] + level.offset[:, :, None, None] for level in stored]  # pyright: ignore

    def pool_stored(*_: Tensor) -> Tensor:
        return roi_align(stored, [boxes], options.size, backend="cuda", **settings)

    ours = pool("cuda")
    return [
        *rows,
        Row("ours, C1 alone", ours, channels_last[:1], first, single),
        Row("ours, two maps", ours, channels_last, both, summed),
        Row("ours, two maps, deterministic", ours, channels_last, both, summed, deterministic=True),
        Row("ours, two maps, direct", pool("cuda", upsample="direct"), channels_last, both, direct),
        Row("ours, two maps of uint8", pool_stored, [], sum(under), pool("reference")(*meant), backward=False),
    ]


def _others(boxes: Tensor, options: argparse.Namespace) -> list[tuple[str, Callable[..., Tensor]]]:
    """RoIAlign of the libraries that are installed."""
    rois, found = F.pad(boxes, (1, 0)), []
    for name, module in (("mmcv", "mmcv.ops"), ("detectron2", "detectron2.layers")):
        try:
            kind = import_module(module)
        except ImportError:
            continue
        kind = getattr(kind, "RoIAlign", None) or kind.ROIAlign
        align = kind(options.size, 1 / STRIDES[0], options.sampling_ratio, aligned=True)
        found.append((name, lambda one, align=align: align(one, rois.to(one.dtype))))
    return found


def _boxes(count: int, h: int, w: int, generator: torch.Generator) -> Tensor:
    """Boxes inside the image as detectors find them: sides from 4 % of the image to all of it, log-uniform."""
    share = 0.04 ** torch.rand(count, 2, generator=generator)
    sides = share * torch.tensor([w, h])
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([w, h]) - sides)
    return torch.cat([corner, corner + sides], 1)


def _cells_under(boxes: Tensor, hw: Sequence[int], stride: int) -> int:
    covered = torch.zeros(tuple(hw), dtype=torch.bool)
    for x0, y0, x1, y1 in (boxes / stride).tolist():
        covered[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
    return int(covered.sum())


def _stored(values: Tensor, stride: int) -> Level:
    """8 bits for each value, as the cache keeps them."""
    low, high = values.float().amin((2, 3)), values.float().amax((2, 3))
    scale = (high - low) / 255
    codes = ((values.float() - low[:, :, None, None]) / scale[:, :, None, None]).round().to(torch.uint8)
    return Level(codes.contiguous(memory_format=torch.channels_last), stride, None, scale, low)


def least_bytes(row: Row, backward: bool) -> float:
    """What a forward pass, or one with the backward pass after it, must move at least: see the top of the file."""
    output = row.expected.numel() * row.expected.element_size()
    gradients = sum(one.numel() * one.element_size() for one in row.maps)
    return row.read + output + (output + gradients) * backward


def _error(row: Row, device: torch.device) -> float:
    """The largest difference to the reference: of the output, and of the gradient along the maps themselves.

    RoIAlign is linear, so <gradient, maps> must be <output, what came in>: a check of every gradient for one product.
    """
    maps = [one.detach().requires_grad_(row.backward) for one in row.maps]
    with determinism(row.deterministic):
        found = row.run(*maps)
        error = (found.float() - row.expected.float()).abs().max().item()
        if row.backward:
            found.backward(row.expected)
            along = sum(
                float((one.grad.double() * one.detach().double()).sum()) for one in maps if one.grad is not None
            )
            square = float(row.expected.double().square().sum())
            error = max(error, abs(along - square) / square)
    wait(device)
    return error


def _measure(rows: Sequence[Row], rounds: int, device: torch.device) -> dict[tuple[str, bool], list[float]]:
    """(row, with backward) -> milliseconds of a call."""
    jobs = {
        (row.name, backward): partial(
            pass_milliseconds,
            row.run,
            row.maps,
            device,
            backward=backward,
            deterministic=row.deterministic,
            calls=CALLS[device.type],
            clock=time.perf_counter,
        )
        for row in rows
        for backward in (False, True)
        if row.backward or not backward
    }
    return rounds_of(jobs, rounds)


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy."""
    size = 2**30 if device.type == "cuda" else 2**26
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    times: list[float] = []
    for _ in range(6):
        wait(device)
        started = time.perf_counter()
        target.copy_(source)
        wait(device)
        times.append(time.perf_counter() - started)
    return 2 * size / min(times)


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda"


if __name__ == "__main__":
    main()
