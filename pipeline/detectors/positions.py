"""Where tokens lie: sine embeddings, the geometry of a pyramid of padded maps, reference points, first proposals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BOX_TEMPERATURE = 10_000.0
"""Of the sine embeddings of boxes."""


def sine_embedding(radians: Tensor, channels: int, temperature: float) -> Tensor:
    """Each coordinate as `channels` interleaved sines and cosines. "... k" -> "... (k channels)" """
    index = torch.arange(channels, device=radians.device)
    wavelength = temperature ** (2 * (index // 2) / channels)
    angles = radians[..., None] / wavelength
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-3)


def box_positions(boxes: Tensor, width: int) -> Tensor:
    """DINO's sine embedding of boxes cxcywh in 0-1, [y, x, w, h]. "... 4" -> "... 2*width" """
    radians = boxes[..., [1, 0, 2, 3]] * (2 * math.pi)  # the official order
    return sine_embedding(radians, width // 2, BOX_TEMPERATURE)


def map_positions(padding: Tensor, channels: int, *, temperature: float, offset: float) -> Tensor:
    """DETR's sine embedding of the cells of a map, [y, x], each in 0..2 pi of the part that is not padding.

    padding: True on padding, "b h w". offset: -0.5 takes cell centres (H-DETR), 0 their far edges (DINO).
    Returns "b (h w) 2*channels"; padded cells get finite nonsense, as in the official code.
    """
    valid = (~padding).float()
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = (y + offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = (x + offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    return sine_embedding(torch.stack([y, x], dim=-1), channels, temperature).flatten(1, 2)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)) with both parts at least eps; H-DETR takes eps 1e-5, DINO 1e-3, and boxes at 0 or 1 feel it."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


@dataclass(frozen=True)
class Pyramid:
    """Several maps flattened to tokens one after the other, row-major; s tokens in all. Detectors go fine to coarse."""

    shapes: tuple[tuple[int, int], ...]
    """(h, w) of each of the l levels."""
    padding: Tensor
    """True on padding. bool "b s" """
    valid_wh: Tensor
    """Columns and rows of each level that are not padding. float32 "b l 2" """

    @classmethod
    def of_masks(cls, masks: Sequence[Tensor]) -> "Pyramid":
        """From the padding mask of each level, "b h w", True on padding (right and bottom)."""
        valid = [torch.stack([(~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)], dim=-1) for mask in masks]
        return cls(
            shapes=tuple((mask.shape[1], mask.shape[2]) for mask in masks),
            padding=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            valid_wh=torch.stack(valid, dim=1).float(),
        )

    @property
    def valid_ratios(self) -> Tensor:
        """Part of each level's width and height that is not padding. "b l 2" """
        return self.valid_wh / self.valid_wh.new_tensor([(w, h) for h, w in self.shapes])

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Tokens "b s c" -> maps "b c h w"."""
        parts = tokens.split([h * w for h, w in self.shapes], dim=1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def centres(self) -> Tensor:
        """(x, y) of each cell in 0-1 of the unpadded image. float32 "b s 2" """
        device, centres = self.padding.device, list[Tensor]()
        for level, (h, w) in enumerate(self.shapes):
            y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
            cells = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5
            centres.append(cells / self.valid_wh[:, level, None])
        return torch.cat(centres, dim=1)

    def references(self) -> Tensor:
        """Where each token looks in each level, (x, y) in 0-1 of the padded map. "b s l 2" """
        return self.centres()[:, :, None] * self.valid_ratios[:, None]

    def proposals(self) -> tuple[Tensor, Tensor]:
        """A box at every cell, 0.05 of the image wide in the first level and twice as wide in each next.

        Returns logits of cxcywh "b s 4" and a bool "b s", True where the cell is padding or the box leaves
        (0.01, 0.99); logits are +inf there.
        """
        centres = self.centres()
        sides = [centres.new_full((h * w, 2), 0.05 * 2.0**level) for level, (h, w) in enumerate(self.shapes)]
        boxes = torch.cat([centres, torch.cat(sides).expand(len(centres), -1, -1)], dim=-1)
        invalid = self.padding | ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
        logits = torch.log(boxes / (1 - boxes))
        return logits.masked_fill(invalid[..., None], torch.inf), invalid


def shrink_mask(padding: Tensor, hw: tuple[int, int]) -> Tensor:
    """A padding mask "b h w" at another size, by nearest neighbour."""
    return F.interpolate(padding[:, None].float(), size=hw)[:, 0].bool()
