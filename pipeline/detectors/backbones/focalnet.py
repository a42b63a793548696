"""FocalNet (Yang et al. 2022) as the official FocalNet-DINO runs it, exact at any input size."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .patches import Mlp, PatchEmbed, normed_maps


@dataclass(frozen=True)
class FocalNetConfig:
    """The numbers that tell one FocalNet from another."""

    embed_dim: int
    """Channels of the first stage; every next stage has twice as many."""
    depths: tuple[int, int, int, int]
    """Blocks of each stage."""
    levels: int
    """Depthwise convolutions, one after the other, that gather the context of a token."""
    window: int
    """Kernel of the first of them; each next one is 2 wider."""
    normalize_modulator: bool
    """Whether the sum over the levels and the global context is divided by their number.

    No weight tells: a checkpoint loads just as well with the wrong value and then gives wrong numbers.
    """


FOCALNET_L_FL4 = FocalNetConfig(embed_dim=192, depths=(2, 2, 18, 2), levels=4, window=3, normalize_modulator=True)
"""FocalNet-L with four focal levels, of the 5-scale DINO checkpoint pre-trained on Objects365."""
FOCALNET_L_FL3 = FocalNetConfig(embed_dim=192, depths=(2, 2, 18, 2), levels=3, window=5, normalize_modulator=False)
"""FocalNet-L with three focal levels."""


class FocalNet(nn.Module):
    """Images to four maps: a LayerNorm of the output of each stage before its downsampling.

    Names of the weights are those of the official checkpoints after `backbone.0.`.
    """

    channels: tuple[int, int, int, int]

    def __init__(self, config: FocalNetConfig) -> None:
        super().__init__()
        c = config.embed_dim
        self.channels = (c, 2 * c, 4 * c, 8 * c)
        self.patch_embed = PatchEmbed(3, c, kernel=7, stride=4, padding=2)
        self.layers = nn.ModuleList(
            Stage(config, depth, channels, downsample=channels != self.channels[-1])
            for channels, depth in zip(self.channels, config.depths, strict=True)
        )
        self.norm0 = nn.LayerNorm(c)
        self.norm1 = nn.LayerNorm(2 * c)
        self.norm2 = nn.LayerNorm(4 * c)
        self.norm3 = nn.LayerNorm(8 * c)

    def forward(self, images: Tensor) -> list[Tensor]:
        """ "b 3 h w" -> maps "b c h w" of strides 4 (C1), 8, 16 and 32; sizes round up."""
        norms = self.norm0, self.norm1, self.norm2, self.norm3
        return normed_maps(self.patch_embed(images), self.layers, norms)


class Stage(nn.Module):
    """Blocks at one resolution, then perhaps an overlapping convolution to half of it."""

    def __init__(self, config: FocalNetConfig, depth: int, channels: int, downsample: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, channels) for _ in range(depth))
        self.downsample = PatchEmbed(channels, 2 * channels, kernel=3, stride=2, padding=1) if downsample else None

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens "b h w c" -> those of the next stage, and those before the downsampling."""
        for block in self.blocks:
            tokens = block(tokens)
        return (self.downsample(tokens.permute(0, 3, 1, 2)) if self.downsample is not None else tokens), tokens


class Block(nn.Module):
    """Focal modulation and an MLP; the norm comes after each, then a learned scale per channel, then the residual."""

    def __init__(self, config: FocalNetConfig, channels: int) -> None:
        super().__init__()
        self.modulation = FocalModulation(channels, config.levels, config.window, config.normalize_modulator)
        self.norm1 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.gamma_1 = nn.Parameter(torch.full((channels,), 1e-4))
        self.gamma_2 = nn.Parameter(torch.full((channels,), 1e-4))

    def forward(self, tokens: Tensor) -> Tensor:
        """ "b h w c" -> the same."""
        tokens = tokens + self.gamma_1 * self.norm1(self.modulation(tokens))
        return tokens + self.gamma_2 * self.norm2(self.mlp(tokens))


class FocalModulation(nn.Module):
    """Each token is multiplied by a gated sum of its surroundings, near to far, instead of attending to them."""

    def __init__(self, channels: int, levels: int, window: int, normalize: bool) -> None:
        super().__init__()
        self.levels = levels
        self.normalize = normalize
        self.f = nn.Linear(channels, 2 * channels + levels + 1)
        self.focal_layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False), nn.GELU()
            )
            for kernel in range(window, window + 2 * levels, 2)
        )
        self.h = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """ "b h w c" -> the same."""
        c = tokens.shape[-1]
        # Channels first in memory too, as in the official code: the layout of torch's own depthwise kernels.
        mixed = self.f(tokens).permute(0, 3, 1, 2).contiguous()
        queries, context, gates = mixed.split((c, c, self.levels + 1), dim=1)
        total = torch.zeros_like(context)
        for layer, gate in zip(self.focal_layers, gates.split(1, dim=1), strict=False):
            context = layer(context)
            total = total + context * gate
        total = total + F.gelu(context.mean((2, 3), keepdim=True)) * gates[:, -1:]
        if self.normalize:
            total = total / (self.levels + 1)
        return self.proj((queries * self.h(total)).permute(0, 2, 3, 1))
