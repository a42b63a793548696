"""Times calls of kernels, for bench_roi_align.py and bench_ms_deform_attn.py."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch


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
