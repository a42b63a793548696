"""`Entry`: one image in one view as a reader gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from featcache.moments import Moments
from featcache.spec import GroundTruth, ImageInfo


@dataclass(frozen=True)
class Entry:
    """One image in one view. Maps are float32 "c h w", channels-last in memory; boxes cxcywh in 0-1 of the view."""

    index: int
    view: str
    info: ImageInfo
    input_hw: tuple[int, int]  # network input without padding, pixels
    maps: dict[str, Tensor]  # "c h w"
    queries: Tensor  # "n d" float32
    boxes: Tensor  # "n 4" float32
    scores: Tensor  # "n" float32
    labels: Tensor  # "n" int64
    ground_truth: GroundTruth
    moments: dict[str, Moments] = field(default_factory=dict[str, Moments])  # of levels that have them, float32
    partial: frozenset[str] = frozenset()  # levels that were not read whole: the rest of their maps is zero

    def features(self) -> dict[str, Any]:
        """The arguments of `CacheWriter.put` that store this entry again."""
        names = ("maps", "queries", "boxes", "scores", "labels", "input_hw")
        return {name: getattr(self, name) for name in names}


Wanted = Callable[[Entry], Mapping[str, Sequence[tuple[int, int]]]]
"""The rows [y0, y1) that are wanted of some levels, from an entry without maps; levels it does not name are wanted
whole. Rows outside of a map do not count."""
