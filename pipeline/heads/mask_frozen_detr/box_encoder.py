"""Box feature encoder: the features inside each box, refined box by box (paper eq. 9).

Called layer by layer, `encoder(layer, regions "m c r r", queries "m d")`, since query layers stand between.
"""

import torch
from torch import Tensor, nn

from ..deformable import DeformableLayer, cell_centres
from .config import HeadConfig
from .map_layers import build_map_layers
from .unet import UnetBoxEncoder


class DeformableBoxEncoder(nn.Module):
    """Deformable layers on the r x r grid; a learned position embedding is added to what asks, or to the grid."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.roi = config.roi
        self.on_input = config.box_position_on == "input"
        self.position = None
        if config.box_position == "learned":
            self.position = nn.Parameter(torch.zeros(config.roi**2, config.hidden))
            nn.init.trunc_normal_(self.position, std=0.02)
        self.layers = nn.ModuleList(
            DeformableLayer(config.hidden, 1, config.heads, config.sampling_points, config.box_norm_first)
            for _ in range(config.box_layers)
        )

    def forward(self, layer: int, regions: Tensor, queries: Tensor) -> Tensor:
        """One layer: "m c r r" -> "m c r r". `queries` are not used; the U-shaped encoder takes them."""
        tokens = regions.flatten(2).transpose(1, 2)
        reference = cell_centres(self.roi, self.roi, tokens.device)[None, :, None]
        position = 0.0 if self.position is None else self.position
        if self.on_input:
            tokens, position = (tokens + position if layer == 0 else tokens), 0.0
        tokens = self.layers[layer](tokens, position, reference, [(self.roi, self.roi)])
        return tokens.transpose(1, 2).reshape(regions.shape)


class MapBoxEncoder(nn.Module):
    """Swin or ConvNeXt layers on the r x r grid."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, layer: int, regions: Tensor, queries: Tensor) -> Tensor:
        """One layer: "m c r r" -> "m c r r". `queries` are not used."""
        return self.layers[layer](regions)


def build_box_encoder(
    config: HeadConfig, query_dim: int
) -> tuple[DeformableBoxEncoder | MapBoxEncoder | UnetBoxEncoder | None, int]:
    """The encoder that the config names, and how many layers it has to be called for."""
    if config.box_encoder == "none":
        return None, 0
    if config.box_encoder == "unet":  # the whole U is one layer
        modulated = query_dim if config.query_modulation else None
        return UnetBoxEncoder(config.hidden, config.roi, config.box_layers, modulated), 1
    if config.box_encoder == "deformable":
        return DeformableBoxEncoder(config), config.box_layers
    layers = build_map_layers(
        config.box_encoder, config, width=config.hidden, layers=config.box_layers, window=config.box_window
    )
    return MapBoxEncoder(layers), config.box_layers
