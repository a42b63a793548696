"""`stats`: least, greatest, mean, deviation, zeros and a histogram of every level, in one pass with little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featcache.ahead import map_ahead
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


def level_statistics(
    cache: Cache, *, view: str | None = None, image_ids: Sequence[int] | None = None, threads: int = 2
) -> dict[str, dict[str, Any]]:
    """`Running.summary` of every level over the done images of a view, by level; empty where none is done."""
    view = view or cache.views[0]
    chosen = range(len(cache)) if image_ids is None else [cache.index_of(image_id) for image_id in image_ids]
    done = cache.done(view)
    indices = [i for i in chosen if done[i]]
    running = {level.name: Running() for level in cache.spec.levels}
    entries = map_ahead(lambda i: cache.entry(i, view), indices, threads)
    for entry in track(entries, len(indices), facts=lambda seconds: read(cache.bytes_read, seconds)):
        for name, values in entry.maps.items():
            running[name].add(values)
    return {name: values.summary() for name, values in running.items() if values.count}


def sparkline(histogram: Sequence[int]) -> str:
    """A histogram as one line of bars, on a logarithmic scale."""
    bars, logs = " ▁▂▃▄▅▆▇█", np.log1p(np.asarray(histogram))
    return "".join(bars[round(float(value) * 8)] for value in logs / max(float(logs.max()), 1.0))
