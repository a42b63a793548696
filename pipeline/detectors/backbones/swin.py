"""Swin Transformer (Liu et al. 2021) as the official H-DETR and DINO run it, exact at any input size."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .patches import Mlp, PatchEmbed, normed_maps

# Added to the logits of tokens that only the roll brought together: the official value, not minus infinity.
CROSS_REGION = -100.0


@dataclass(frozen=True)
class SwinConfig:
    """The numbers that tell one Swin from another."""

    embed_dim: int
    """Channels of the first stage; every next stage has twice as many."""
    depths: tuple[int, int, int, int]
    """Blocks of each stage; every second one is shifted by half a window."""
    heads: tuple[int, int, int, int]
    """Attention heads of each stage."""
    window: int
    """Side of the attention window in cells. It never shrinks, not even on a map smaller than it."""
    norm_c1: bool = False
    """Whether C1 has a norm of its own (`norm0`), as in the 5-scale DINO."""


SWIN_L_WINDOW7 = SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=7)
"""Swin-L of the H-DETR checkpoints."""
SWIN_L_WINDOW12 = SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12)
"""Swin-L of the 4-scale DINO checkpoints (pre-trained at 384 x 384)."""


class Swin(nn.Module):
    """Images to four maps: the output of each stage before its downsampling, with a LayerNorm where there is one.

    Names of the weights are the official ones after `backbone.0.body.` (H-DETR) or `backbone.0.` (DINO).
    """

    channels: tuple[int, int, int, int]

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        c = config.embed_dim
        self.channels = (c, 2 * c, 4 * c, 8 * c)
        self.patch_embed = PatchEmbed(3, c, kernel=4, stride=4)
        self.layers = nn.ModuleList(
            Stage(channels, depth, heads, config.window, downsample=channels != self.channels[-1])
            for channels, depth, heads in zip(self.channels, config.depths, config.heads, strict=True)
        )
        self.norm0 = nn.LayerNorm(c) if config.norm_c1 else nn.Identity()
        self.norm1 = nn.LayerNorm(2 * c)
        self.norm2 = nn.LayerNorm(4 * c)
        self.norm3 = nn.LayerNorm(8 * c)

    def forward(self, images: Tensor) -> list[Tensor]:
        """ "b 3 h w" -> maps "b c h w" of strides 4 (C1), 8, 16 and 32; sizes round up."""
        norms = self.norm0, self.norm1, self.norm2, self.norm3
        return normed_maps(self.patch_embed(images), self.layers, norms)


@dataclass(frozen=True)
class Seam:
    """Where a rolled grid joins: the roll brings the first rows (columns) behind the last, into windows with them."""

    windows: Tensor
    """Positions of the last row and column of windows, the only ones with cells that are not neighbours. int64 "e" """
    mask: Tensor
    """What these windows add to their logits: 0 within a region, -100 across. "e n n" """


class Stage(nn.Module):
    """Blocks at one resolution, alternately plain and shifted, then perhaps a merge of 2 x 2 patches."""

    def __init__(self, channels: int, depth: int, heads: int, window: int, downsample: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(Block(channels, heads, window, shift=window // 2 * (i % 2)) for i in range(depth))
        self.downsample = PatchMerging(channels) if downsample else None

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens "b h w c" -> those of the next stage, and those before they are merged."""
        seam = seam_of(tokens, self.window)
        for block in self.blocks:
            tokens = block(tokens, seam)
        return (self.downsample(tokens) if self.downsample is not None else tokens), tokens


class Block(nn.Module):
    """Window attention and an MLP, each after a LayerNorm and beside a residual."""

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, tokens: Tensor, seam: Seam) -> Tensor:
        """ "b h w c" -> the same; a shifted block needs the seam."""
        h, w = tokens.shape[1:3]
        # The padding comes after the norm and before the roll: padded cells are keys like any other.
        grid = F.pad(self.norm1(tokens), (0, 0, 0, -w % self.window, 0, -h % self.window))
        if self.shift:
            grid = grid.roll((-self.shift, -self.shift), (1, 2))
        attended = self.attn(to_windows(grid, self.window), seam if self.shift else None)
        grid = from_windows(attended, self.window, grid.shape[1], grid.shape[2])
        if self.shift:
            grid = grid.roll((self.shift, self.shift), (1, 2))
        tokens = tokens + grid[:, :h, :w]
        return tokens + self.mlp(self.norm2(tokens))


class WindowAttention(nn.Module):
    """Attention within windows of n = window x window cells, with a learned bias per head and relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # A constant, but the official checkpoints store it.
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, seam: Seam | None) -> Tensor:
        """ "b k n c", k windows per image, and where the grid is rolled its seam -> "b k n c"."""
        b, k, n, c = windows.shape
        qkv = self.qkv(windows).view(b, k, n, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        attended = attend(qkv, bias)
        if seam is not None:  # few windows: attending twice there is cheaper than a mask for every window
            masked = attend(qkv[:, :, seam.windows], bias + seam.mask[:, None])
            attended = attended.index_copy(1, seam.windows, masked)
        return self.proj(attended.transpose(2, 3).reshape(b, k, n, c))


def attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention "3 b k m n d" -> "b k m n d", m heads; the bias "m n n" or "k m n n" is added to the logits."""
    queries, keys, values = qkv.flatten(1, 2)
    bias = bias[None] if bias.ndim == 3 else bias.repeat(qkv.shape[1], 1, 1, 1)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))
    return attended.unflatten(0, qkv.shape[1:3])


class PatchMerging(nn.Module):
    """Half the size, twice the channels: LayerNorm and a linear layer on the four tokens of each 2 x 2 patch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """ "b h w c" -> "b h/2 w/2 2c"; an odd size first gets a last row or column of zeros."""
        h, w = tokens.shape[1:3]
        tokens = F.pad(tokens, (0, 0, 0, w % 2, 0, h % 2))
        # (row, column) of the quarters: (0, 0), (1, 0), (0, 1), (1, 1)
        quarters = [tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, -1)))


def to_windows(grid: Tensor, window: int) -> Tensor:
    """ "b h w c", h and w multiples of the window -> "b k n c": k windows in reading order, n cells in each."""
    b, h, w, c = grid.shape
    parts = grid.reshape(b, h // window, window, w // window, window, c)
    return parts.transpose(2, 3).reshape(b, -1, window * window, c)


def from_windows(windows: Tensor, window: int, h: int, w: int) -> Tensor:
    """Back from `to_windows`: "b k n c" -> "b h w c"."""
    parts = windows.view(windows.shape[0], h // window, w // window, window, window, -1)
    return parts.transpose(2, 3).reshape(windows.shape[0], h, w, -1)


def seam_of(tokens: Tensor, window: int) -> Seam:
    """The seam of the grid of `tokens` "b h w c", padded to the window and rolled by half of it."""
    rows, columns = (-(-size // window) for size in tokens.shape[1:3])
    bands = [torch.zeros(count * window, dtype=torch.long, device=tokens.device) for count in (rows, columns)]
    for band in bands:
        band[-(window // 2) :] = 1  # what came round from the other side
    regions = to_windows((2 * bands[0][:, None] + bands[1])[None, :, :, None], window).squeeze(0, -1)
    grid = torch.arange(rows * columns, device=tokens.device).view(rows, columns)
    windows = torch.cat([grid[:-1, -1], grid[-1]])
    regions = regions[windows]
    mask = torch.where(regions[:, :, None] == regions[:, None], 0.0, CROSS_REGION).to(tokens.dtype)
    return Seam(windows, mask)


def relative_positions(window: int) -> Tensor:
    """Row of the bias table for each (query, key) of a window, by query minus key. int64 "n n" """
    side = torch.arange(window)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(side, side, indexing="ij"))
    down = rows[:, None] - rows + window - 1
    right = columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + right
