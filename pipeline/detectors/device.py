"""Device names -> torch devices."""

import torch

from ..errors import PipelineError


def torch_device(name: str) -> torch.device:
    """The device of a name (`cpu`, `cuda`, `cuda:1`); raises PipelineError where this machine has none."""
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise PipelineError(f"unknown device '{name}'", "cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise PipelineError(f"torch sees no GPU for '{name}'", "install a CUDA build of torch, or pass --device cpu")
    return torch.device(name)
