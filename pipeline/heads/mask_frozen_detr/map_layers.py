"""Layers from map to map that serve both the image feature encoder and the box feature encoder."""

from torch import nn

from ..convnext import ConvNextLayer
from ..swin import SwinLayer
from .config import HeadConfig


def build_map_layers(kind: str, config: HeadConfig, *, width: int, layers: int, window: int) -> nn.ModuleList:
    """`swin` or `convnext` layers, each "b c h w" -> the same; every second Swin layer is shifted."""
    if kind == "swin":
        return nn.ModuleList(SwinLayer(width, config.heads, window, shifted=bool(i % 2)) for i in range(layers))
    return nn.ModuleList(ConvNextLayer(width, config.layer_scale) for _ in range(layers))
