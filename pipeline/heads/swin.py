"""Swin Transformer layer on one feature map, or on the cells of a RoI (Liu et al. 2021; paper, section 3.2)."""

from torch import Tensor, nn

from ..detectors.backbones.swin import Block, seam_of


class SwinLayer(nn.Module):
    """LayerNorm, window attention, LayerNorm, FFN: the backbone's block, every second one shifted by half a window.

    Maps of any size: zeros fill the windows at the right and at the bottom, and are keys like any other cell, as in
    the official code.
    """

    def __init__(self, width: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.block = Block(width, heads, window, shift=window // 2 if shifted else 0)
        # a constant that only the official checkpoints of the backbone store
        index = self.block.attn.relative_position_index
        self.block.attn.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """ "b c h w" -> the same."""
        if not len(maps):  # no box in any image: there are no windows to count
            return maps
        tokens = maps.permute(0, 2, 3, 1)
        return self.block(tokens, seam_of(tokens, self.window)).permute(0, 3, 1, 2)
