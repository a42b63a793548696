"""Device names -> torch devices, and a word about one that is not used."""

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


def tell_unused_gpu(device: str) -> None:
    """Say on stderr that long work is about to run on the CPU of a machine with a GPU."""
    if device == "cpu" and torch.cuda.is_available():
        print("this runs on the CPU, and torch sees a GPU: --device cuda uses it", file=sys.stderr)
