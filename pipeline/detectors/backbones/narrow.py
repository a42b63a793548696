"""A narrow residual network for the embedded detector: a few hundred thousand weights, the shape of a ResNet."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Narrow(nn.Module):
    """Two strided convolutions, then four stages of two residual blocks; the first at stride 4 gives C1."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 128)) -> None:
        super().__init__()
        self.channels = tuple(channels)
        first = channels[0]
        self.stem = nn.Sequential(
            _conv(3, first // 2, stride=2), nn.ReLU(), _conv(first // 2, first, stride=2), nn.ReLU()
        )
        widths = [first, *channels]
        self.stages = nn.ModuleList(
            nn.Sequential(_Block(widths[i], widths[i + 1], 1 if i == 0 else 2), _Block(widths[i + 1], widths[i + 1], 1))
            for i in range(4)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images "b 3 h w" -> maps "b c h w" of strides 4, 8, 16, 32."""
        x, maps = self.stem(images), list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.conv2 = _conv(outputs, outputs)
        self.shortcut = nn.Identity() if (inputs, stride) == (outputs, 1) else _conv(inputs, outputs, stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


def _conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """Convolution and batch norm; at odd sizes the map is rounded up."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)
    )
