"""In which number format a head computes while it learns."""

from contextlib import AbstractContextManager, nullcontext

import torch

from .config import TrainConfig


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """The context for the forward pass; losses are computed outside of it, in float32."""
    return torch.autocast(device.type, torch.bfloat16) if config.amp == "bf16" else nullcontext()
