"""Device names -> torch devices, the threads that serve one, and a word about one that is not used."""

import os
import sys

import torch

from ..errors import PipelineError, UsageError


def torch_device(name: str) -> torch.device:
    """The device of a name (`cpu`, `cuda`, `cuda:1`); raises PipelineError where this machine has none."""
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not number.isdigit()):
        raise UsageError(f"unknown device '{name}'", "cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise PipelineError(f"torch sees no GPU for '{name}'", "install a CUDA build of torch, or pass --device cpu")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise PipelineError(
            f"torch sees {torch.cuda.device_count()} GPUs, none of them is '{name}'", "count from cuda:0"
        )
    return torch.device(name)


def host_threads(device: torch.device | str) -> int:
    """Threads that read, decode or write beside a device: more where the processor has little else to do than that."""
    return 2 if torch.device(device).type == "cpu" else max(2, min(8, os.cpu_count() or 1))


def tell_unused_gpu(device: str) -> None:
    """Say on stderr that long work is about to run on the CPU of a machine with a GPU."""
    if device == "cpu" and torch.cuda.is_available():
        print("this runs on the CPU, and torch sees a GPU: --device cuda uses it", file=sys.stderr)
