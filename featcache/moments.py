"""`Moments`: mean and covariance of a map's channels, from which follow those of whatever is linear in the map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

_EXACT = 1 << 10
"""Products of two signed bytes whose sum float32 holds exactly, in whatever order."""
_LONGEST = 1 << 16
"""Products of two signed bytes whose sum int32 holds."""


@dataclass(frozen=True)
class Moments:
    """Over the cells of a map; a batch of images may stand before the dimensions named here."""

    mean: Tensor  # "c"
    covariance: Tensor  # "c c", of the differences to the mean, divided by the number of cells

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of a map "c h w" without padding; at least in float32, centred before it is squared."""
        cells = values.flatten(1)
        cells = cells if cells.dtype == torch.float64 else cells.float()
        mean = cells.mean(1, dtype=torch.float64).to(cells.dtype)
        centred = cells - mean[:, None]
        with torch.autocast(values.device.type, enabled=False):
            return cls(mean, centred @ centred.T / cells.shape[1])

    @classmethod
    def of_codes(cls, tokens: Tensor, scale: Tensor, offset: Tensor) -> Moments:
        """Of the map that uint8 tokens "h w c" stand for, `tokens * scale + offset` with both "c".

        Sums of codes and of their products are whole numbers and kept exact, so nothing depends on the machine, the
        number of threads, or how large the mean is beside the spread.
        """
        codes = (tokens.flatten(0, 1) ^ 128).view(torch.int8)  # less 128
        cells, scale = len(codes), scale.double()
        sums = codes.sum(0, dtype=torch.int32).long()
        spread = (cells * products(codes) - sums[:, None] * sums).double() / cells**2
        mean = (sums.double() / cells + 128) * scale + offset
        return cls(mean.float(), (spread * scale[:, None] * scale).float())

    @classmethod
    def stack(cls, images: list[Moments]) -> Moments:
        """Of the images of a batch: "b c" and "b c c"."""
        return cls(*(torch.stack([getattr(one, name) for one in images]) for name in ("mean", "covariance")))

    def packed(self) -> Tensor:
        """The upper triangle of the covariance row by row, float32 as it is stored. "c * (c + 1) / 2" """
        c = len(self.mean)
        rows, columns = torch.triu_indices(c, c, device=self.covariance.device)
        return self.covariance[rows, columns].float()

    @classmethod
    def unpacked(cls, mean: Tensor, triangle: Tensor) -> Moments:
        """The inverse of `packed`."""
        c = len(mean)
        rows, columns = torch.triu_indices(c, c, device=mean.device)
        covariance = triangle.new_empty(c, c)
        covariance[rows, columns] = triangle
        covariance[columns, rows] = triangle
        return cls(mean, covariance)


def products(codes: Tensor, *, as_bytes: bool | None = None) -> Tensor:
    """The sum over t of the products of two channels of int8 "t c", exact. int64 "c c"

    as_bytes: with the processor's instructions for products of bytes, five times as fast as in float32; None where it
    has them.
    """
    if as_bytes is None:
        as_bytes = codes.device.type == "cpu" and multiplies_bytes()
    if as_bytes:
        parts = [codes[start : start + _LONGEST] for start in range(0, len(codes), _LONGEST)]
        multiply = torch._int_mm  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        sums = [multiply(part.T, part) for part in parts]
        return torch.stack(sums).sum(0, dtype=torch.int64)
    blocks = pad(codes.float(), (0, 0, 0, -len(codes) % _EXACT)).view(-1, _EXACT, codes.shape[1])
    with torch.autocast(codes.device.type, enabled=False):
        return torch.bmm(blocks.mT, blocks).sum(0, dtype=torch.float64).long()


@cache
def multiplies_bytes() -> bool:
    """Whether this processor has VNNI; without it torch's product of bytes may saturate."""
    return getattr(torch.cpu, "_is_vnni_supported", lambda: False)()  # not every release tells


def packed_size(channels: int) -> int:
    """Numbers in the triangle of so many channels."""
    return channels * (channels + 1) // 2
