"""`Moments`: mean and covariance of a map's channels, from which follow those of whatever is linear in the map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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
    def stack(cls, images: list[Moments]) -> Moments:
        """Of the images of a batch: "b c" and "b c c"."""
        return cls(*(torch.stack([getattr(one, name) for one in images]) for name in ("mean", "covariance")))

    def packed(self) -> NDArray[np.float32]:
        """The upper triangle of the covariance row by row, as it is stored. "c * (c + 1) / 2" """
        rows, columns = np.triu_indices(len(self.mean))
        return self.covariance.cpu().numpy()[rows, columns].astype(np.float32)

    @classmethod
    def unpacked(cls, mean: Tensor, triangle: Tensor) -> Moments:
        """The inverse of `packed`."""
        c = len(mean)
        rows, columns = torch.triu_indices(c, c, device=mean.device)
        covariance = triangle.new_empty(c, c)
        covariance[rows, columns] = triangle
        covariance[columns, rows] = triangle
        return cls(mean, covariance)


def packed_size(channels: int) -> int:
    """Numbers in the triangle of so many channels."""
    return channels * (channels + 1) // 2
