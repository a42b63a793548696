"""`stats`: range, mean, deviation, zeros, histogram and rounding of every level, in one pass with little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.ahead import map_ahead
from featcache.entry import Entry
from featcache.progress import read, track
from featcache.reader import Cache

BINS = 64


class Running:
    """Statistics of the values given so far. The histogram spans [-reach, reach]; reach is a power of two and grows."""

    def __init__(self) -> None:
        self.count = 0
        self.zeros = 0
        self.low = math.inf
        self.high = -math.inf
        self.mean = 0.0
        self.squares = 0.0  # sum of squared deviations from the mean
        self.reach = 2.0**-20
        self.histogram = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count the values of a float tensor of any shape."""
        values = values.flatten()
        low, high = (float(limit) for limit in torch.aminmax(values))
        while max(-low, high) > self.reach:
            self._double_reach()
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.zeros += int((values == 0).sum())
        self.histogram += torch.histc(values, BINS, -self.reach, self.reach).long()
        # Chan's formula: sums of squares of billions of values would lose the deviation.
        variance, mean = (float(value) for value in torch.var_mean(values.double(), correction=0))
        total, shift = self.count + len(values), mean - self.mean
        self.squares += variance * len(values) + shift**2 * self.count * len(values) / total
        self.mean += shift * len(values) / total
        self.count = total

    def summary(self) -> dict[str, Any]:
        """The figures by name; `histogram` has BINS equal bins from `histogram_low` to `histogram_high`."""
        return {
            "count": self.count,
            "min": self.low,
            "max": self.high,
            "mean": self.mean,
            "std": math.sqrt(self.squares / self.count),
            "zeros": self.zeros / self.count,
            "histogram_low": -self.reach,
            "histogram_high": self.reach,
            "histogram": [int(count) for count in self.histogram],
        }

    def _double_reach(self) -> None:
        pairs = self.histogram.view(-1, 2).sum(1)
        self.histogram = torch.zeros_like(self.histogram)
        self.histogram[BINS // 4 : BINS // 4 + BINS // 2] = pairs
        self.reach *= 2


class Rounding:
    """What uint8 rounded off the maps given so far: steps of their channels, expected squares of errors and values."""

    def __init__(self) -> None:
        self.fewest, self.most = math.inf, 0
        self.noise = self.energy = 0.0

    def add(self, values: Tensor, scale: Tensor) -> None:
        """Count a decoded map "c h w" with the scale of its channels."""
        cells = values.flatten(1)
        low, high = cells.amin(1), cells.amax(1)
        used = scale > 0
        if used.any():
            steps = ((high - low)[used] / scale[used]).round()
            self.fewest, self.most = min(self.fewest, int(steps.max())), max(self.most, int(steps.max()))
        off = torch.count_nonzero(cells > low[:, None], dim=1)  # the least value of a channel is stored exactly
        self.noise += float((scale.double().square() * off).sum()) / 12
        self.energy += float(cells.square().sum(1, dtype=torch.float64).sum())

    def summary(self) -> dict[str, Any]:
        """Steps of the image with fewest and with most, relative L2 error expected; null where nothing was rounded."""
        return {
            "steps_min": int(self.fewest) if self.most else None,
            "steps_max": self.most or None,
            "rounding": math.sqrt(self.noise / self.energy) if self.energy else None,
        }


def level_statistics(
    cache: Cache, *, view: str | None = None, image_ids: Sequence[int] | None = None, threads: int = 2
) -> dict[str, dict[str, Any]]:
    """`Running.summary` of every level over the done images of a view, by level; empty where none is done.

    Also `Rounding.summary`, for codec uint8: the error expected of rounding, none is measured against the detector.
    """
    view = view or cache.views[0]
    chosen = range(len(cache)) if image_ids is None else [cache.index_of(image_id) for image_id in image_ids]
    done = cache.done(view)
    indices = [i for i in chosen if done[i]]
    running = {level.name: Running() for level in cache.spec.levels}
    rounding = {level.name: Rounding() for level in cache.spec.levels}
    entries = map_ahead(lambda i: _read(cache, i, view), indices, threads)
    for entry, rows in track(entries, len(indices), facts=lambda seconds: read(cache.bytes_read, seconds)):
        for name, values in entry.maps.items():
            running[name].add(values)
            if cache.spec.codec == "uint8":
                rounding[name].add(values, torch.as_tensor(rows[f"scale/{name}"]))
    return {name: values.summary() | rounding[name].summary() for name, values in running.items() if values.count}


def _read(cache: Cache, index: int, view: str) -> tuple[Entry, dict[str, NDArray[Any]]]:
    """An image decoded, and its rows as stored."""
    record = cache.read(index, view)
    return cache.decode(record), record.rows


def sparkline(histogram: Sequence[int]) -> str:
    """A histogram as one line of bars, on a logarithmic scale."""
    bars, logs = " ▁▂▃▄▅▆▇█", np.log1p(np.asarray(histogram))
    return "".join(bars[round(float(value) * 8)] for value in logs / max(float(logs.max()), 1.0))
