"""Device names -> torch devices."""

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
