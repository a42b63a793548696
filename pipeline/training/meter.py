"""What the steps of one head cost, when others may train beside it in the same process."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .track import peak_memory


class Meter:
    """Seconds of each step and its memory.

    Memory is what the head alone adds to the batch: its weights, gradients and optimiser, and what a step takes beside
    them. On a GPU that is the allocator's peak; on a CPU, which keeps no such account, it is what autograd keeps for
    the backward pass, without the short-lived buffers of single operations.
    """

    def __init__(self, device: torch.device, own_bytes: Callable[[], int]) -> None:
        self.device = device
        self.step_bytes = 0
        """Most of any measured step."""
        self.process_bytes = 0
        """Largest memory of the device, or of this process on a CPU, so far."""
        self._own_bytes = own_bytes
        self._own = 0
        self._known: set[int] = set()
        self._kept: dict[int, int] = {}
        """Of the step that is weighed now: the own bytes, storages that were there before, what autograd keeps."""
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measured(self, *, weighed: bool, others: Iterable[Tensor]) -> Iterator[None]:
        """Around a step. weighed: on a CPU, count its memory too; not that of `others`, the batch and the weights."""
        if self.device.type == "cuda":
            with self._on_gpu():
                yield
            return
        started = time.perf_counter()
        if weighed:
            self._own, self._kept = self._own_bytes(), {}
            self._known = {tensor.untyped_storage().data_ptr() for tensor in others}
            with kept_for_backward(self._kept):
                yield
            self.part_done()
        else:
            yield
        self._seconds.append(time.perf_counter() - started)
        self.process_bytes = peak_memory(self.device)

    def part_done(self) -> None:
        """After the backward pass of a part of the batch: what it kept is free again."""
        kept = sum(size for pointer, size in self._kept.items() if pointer not in self._known)
        self._kept.clear()
        self.step_bytes = max(self.step_bytes, self._own + kept)

    def seconds(self) -> float:
        """Mean of the steps since the last call; 0 if there was none."""
        for start, end in self._events:
            end.synchronize()
            self._seconds.append(start.elapsed_time(end) / 1000)
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else 0.0
        self._seconds, self._events = [], []
        return mean

    @contextmanager
    def _on_gpu(self) -> Iterator[None]:
        """Times come from events, so that no step waits for the GPU to be timed."""
        own, before = self._own_bytes(), torch.cuda.memory_allocated(self.device)
        self.process_bytes = max(self.process_bytes, peak_memory(self.device))
        torch.cuda.reset_peak_memory_stats(self.device)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(torch.cuda.current_stream(self.device))
        yield
        end.record(torch.cuda.current_stream(self.device))
        self._events.append((start, end))
        peak = peak_memory(self.device)
        self.step_bytes = max(self.step_bytes, own + peak - before)
        self.process_bytes = max(self.process_bytes, peak)


@contextmanager
def kept_for_backward(sizes: dict[int, int]) -> Iterator[None]:
    """Writes into `sizes` the bytes of every storage that autograd keeps inside the block, by its address."""

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield
