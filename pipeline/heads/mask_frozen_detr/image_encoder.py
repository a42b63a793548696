"""Image feature encoder: the encoder maps of the detector, refined once for all boxes (paper eq. 5-6)."""

import torch
from torch import Tensor, nn

from ..deformable import DeformableLayer, cell_centres


class DeformableImageEncoder(nn.Module):
    """Multi-scale deformable layers over all levels.

    No position or level embedding of its own: the maps come out of an encoder that added both in each of its layers.
    """

    def __init__(self, width: int, levels: int, layers: int, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DeformableLayer(width, levels, heads, points) for _ in range(layers))

    def forward(self, maps: list[Tensor], valid_hw: list[Tensor]) -> list[Tensor]:
        """Maps "b c h w" fine to coarse -> the same shapes; cells outside `valid_hw` ("b 2" per level) are padding."""
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        full_hw = [valid.new_tensor(shape) for valid, shape in zip(valid_hw, shapes, strict=True)]
        # share of each padded level that is image, as (x, y): "b l 2"
        ratios = torch.stack([(v / f).flip(-1) for v, f in zip(valid_hw, full_hw, strict=True)], dim=1)
        centres, paddings = [], []
        for level, (h, w) in enumerate(shapes):
            centre = cell_centres(h, w, tokens.device)
            centres.append(centre[None] / ratios[:, None, level])  # in 0-1 of the image, beyond 1 in the padding
            paddings.append((centre[None] > ratios[:, None, level]).any(-1))
        reference = torch.cat(centres, dim=1)[:, :, None] * ratios[:, None]  # "b s l 2"
        padding = torch.cat(paddings, dim=1)
        mask = padding if bool(padding.any()) else None
        for layer in self.layers:
            tokens = layer(tokens, 0.0, reference, shapes, mask)
        split = tokens.split([h * w for h, w in shapes], dim=1)
        return [
            t.transpose(1, 2).reshape(t.shape[0], t.shape[2], h, w) for t, (h, w) in zip(split, shapes, strict=True)
        ]
