"""The benchmark of the neck's two paths compares them where they can agree, whatever a GPU does to convolutions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scripts import bench_neck


def in_tf32(values: Tensor) -> Tensor:
    """Rounded to the 10 bits of mantissa that a tensor core reads; the gradient is as it was."""
    rounded = ((values.detach().view(torch.int32) + (1 << 12)) & ~0x1FFF).view(torch.float32)
    return values + (rounded - values).detach()


def test_the_paths_agree_where_cudnn_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    forward: Callable[..., Tensor] = nn.Conv2d._conv_forward

    def rounding(layer: nn.Conv2d, given: Tensor, weight: Tensor, bias: Any) -> Tensor:
        if torch.backends.cudnn.enabled:
            given, weight = in_tf32(given), in_tf32(weight)
        return forward(layer, given, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", rounding)
    assert bench_neck.times(bench_neck.random_features((256, 320), 2, 64), 1).keys() == {"full", "local", "auto"}
