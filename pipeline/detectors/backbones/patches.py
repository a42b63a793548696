"""What Swin and FocalNet share: patches become tokens "b h w c", and an MLP runs on every token."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Strided convolution and LayerNorm, after zeros at the bottom and right up to a multiple of the stride."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(channels_in, channels, kernel, stride, padding)
        self.norm = nn.LayerNorm(channels)

    def forward(self, cells: Tensor) -> Tensor:
        """ "b c h w" -> tokens "b h w c" of 1 / stride the size, rounded up."""
        h, w = cells.shape[2:]
        return self.norm(self.proj(F.pad(cells, (0, -w % self.stride, 0, -h % self.stride))).permute(0, 2, 3, 1))


class Mlp(nn.Module):
    """Two linear layers, four times as wide between them, with the exact GELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """ "... c" -> the same."""
        return self.fc2(F.gelu(self.fc1(tokens)))


def normed_maps(tokens: Tensor, stages: Iterable[nn.Module], norms: Iterable[nn.Module]) -> list[Tensor]:
    """Tokens "b h w c" through the stages; what each gives before its downsampling, normed, as maps "b c h w"."""
    maps: list[Tensor] = []
    for stage, norm in zip(stages, norms, strict=True):
        tokens, before = stage(tokens)
        maps.append(norm(before).permute(0, 3, 1, 2))
    return maps
