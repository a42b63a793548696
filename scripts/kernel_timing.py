"""Times calls of kernels, for bench_roi_align.py and bench_ms_deform_attn.py."""

import random
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Job = TypeVar("Job", bound=Hashable)


def machine(device: torch.device) -> str:
    """What it computes on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def rounds_of(jobs: Mapping[Job, Callable[[], float]], rounds: int) -> dict[Job, list[float]]:
    """What each job tells in each round, which takes them in random order; a first one compiles, warms, is not told."""
    told: dict[Job, list[float]] = {job: [] for job in jobs}
    order = random.Random(0)
    for number in range(rounds + 1):
        for job in order.sample(list(jobs), len(jobs)):
            found = jobs[job]()
            if number:
                told[job].append(found)
    return told


def pass_milliseconds(
    run: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    device: torch.device,
    *,
    backward: bool,
    deterministic: bool,
    calls: int,
    clock: Callable[[], float],
) -> float:
    """Of a call with these inputs, with the gradients of all of them where `backward`; else see `milliseconds`."""
    parts = [part.detach().requires_grad_(backward) for part in inputs]

    def call() -> None:
        found = run(*parts)
        if backward:
            torch.autograd.grad(found, parts, found.detach())

    with determinism(deterministic), torch.set_grad_enabled(backward):
        return milliseconds(call, device, calls, clock)


def milliseconds(call: Callable[[], object], device: torch.device, calls: int, clock: Callable[[], float]) -> float:
    """Of one of so many calls, after another that does not count. clock: seconds, for those on a CPU."""
    call()
    wait(device)
    if device.type != "cuda":
        started = clock()
        for _ in range(calls):
            call()
        return (clock() - started) / calls * 1e3
    head_start = torch.ones(8192, 8192, device=device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    stream = torch.cuda.current_stream(device)  # of `cuda:1` too, where the first GPU is the current one
    wait(device)
    torch.mm(head_start, head_start)  # busy while Python queues the calls: kernels are timed, not Python
    begin.record(stream)
    for _ in range(calls):
        call()
    end.record(stream)
    wait(device)
    return begin.elapsed_time(end) / calls


def wait(device: torch.device) -> None:
    """For what a GPU has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def determinism(wanted: bool) -> Generator[None]:
    """Inside, PyTorch is deterministic where it is wanted."""
    torch.use_deterministic_algorithms(wanted)
    # poisoned memory is not part of what is timed
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore
