"""Image feature encoder: the encoder maps of the detector, refined once for all boxes (paper eq. 5-8)."""

import torch
from torch import Tensor, nn

from ..deformable import DeformableLayer, cell_centres
from .config import HeadConfig
from .map_layers import build_map_layers


class DeformableImageEncoder(nn.Module):
    """Multi-scale deformable layers over all levels.

    No position or level embedding of its own: the maps come out of an encoder that added both in each of its layers.
    """

    def __init__(self, width: int, levels: int, layers: int, heads: int, points: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DeformableLayer(width, levels, heads, points) for _ in range(layers))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps "b c h w" without padding, fine to coarse -> the same shapes."""
        shapes = [(level.shape[2], level.shape[3]) for level in maps]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        reference = torch.cat([cell_centres(h, w, tokens.device) for h, w in shapes])
        reference = reference[None, :, None].expand(-1, -1, len(shapes), -1)  # the same point of every level
        for layer in self.layers:
            tokens = layer(tokens, 0.0, reference, shapes)
        split = tokens.split([h * w for h, w in shapes], dim=1)
        return [t.transpose(1, 2).reshape(len(t), -1, h, w) for t, (h, w) in zip(split, shapes, strict=True)]


class FinestMapEncoder(nn.Module):
    """Swin or ConvNeXt layers on the finest encoder map (eq. 7 and 8); the head reads no other."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps "b c h w" without padding, fine to coarse -> the first refined, the others as they are."""
        finest = maps[0]
        for layer in self.layers:
            finest = layer(finest)
        return [finest, *maps[1:]]


def build_image_encoder(
    config: HeadConfig, width: int, levels: int
) -> DeformableImageEncoder | FinestMapEncoder | None:
    """The encoder that the config names, for maps of `width` channels on so many levels."""
    if config.image_encoder == "none":
        return None
    if config.image_encoder == "deformable":
        return DeformableImageEncoder(width, levels, config.image_layers, config.heads, config.sampling_points)
    layers = build_map_layers(
        config.image_encoder, config, width=width, layers=config.image_layers, window=config.image_window
    )
    return FinestMapEncoder(layers)
