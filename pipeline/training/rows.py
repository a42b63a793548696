"""Which rows of a map a training can do with: those under the boxes that learn."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from featcache import CacheSpec, Entry, Wanted

from ..data.coco import Category
from ..data.sources import FeatureSource, collate, maps_asked_for
from ..heads.base import MaskHead
from ..ops.roi_geometry import rows_read
from .config import TrainConfig
from .targets import find_learners, learners_key


@dataclass(frozen=True)
class RowsUnderBoxes:
    """Of each level that an image needs in part, the rows under every box that these may look into (`Wanted`)."""

    spec: CacheSpec
    categories: Sequence[Category]
    heads: tuple[tuple[MaskHead, TrainConfig], ...]

    def __call__(self, entry: Entry) -> dict[str, list[tuple[int, int]]]:
        """entry: without maps."""
        height = entry.input_hw[0]
        rows: dict[str, list[tuple[int, int]]] = {}
        levels = levels_in_part(self.heads, self.spec, entry.input_hw)
        if not levels:
            return rows
        spans = [
            (top * height, bottom * height) for config in self._configs for top, bottom in self._edges(entry, config)
        ]
        for name in levels:
            stride = self.spec.level(name).stride
            rows[name] = [rows_read(top, bottom, stride, -(-height // stride)) for top, bottom in spans]
        return rows

    @cached_property
    def _configs(self) -> list[TrainConfig]:
        """One of each kind that chooses boxes in the same way."""
        return list({(learners_key(one), one.jitter): one for _, one in self.heads}.values())

    def _edges(self, entry: Entry, config: TrainConfig) -> list[tuple[float, float]]:
        """Upper and lower edge, in 0-1 of the view, of every box that may learn, as far as jitter may move them."""
        learners = find_learners(collate([entry], self.spec), 0, self.categories, config)
        _, middle, _, height = learners.boxes(learners.pairs).unique(dim=0).double().unbind(1)
        reach = height * (0.5 + config.jitter)
        return list(zip((middle - reach).tolist(), (middle + reach).tolist(), strict=True))


def levels_in_part(
    heads: Sequence[tuple[MaskHead, TrainConfig]], spec: CacheSpec, input_hw: tuple[int, int]
) -> frozenset[str]:
    """Levels in bands that each of these heads reads under its boxes alone, or not at all, of an image of this size."""
    levels = frozenset(level.name for level in spec.levels if level.bands > 1)
    levels &= frozenset(maps_asked_for((head.maps_read for head, _ in heads), spec))
    for head, config in heads:
        whole = frozenset(maps_asked_for([head.maps_read], spec))
        levels -= whole - head.maps_under_boxes(spec, input_hw, config.rois_per_image)
    return levels


def rows_under_boxes(heads: Iterable[tuple[MaskHead, TrainConfig]], source: FeatureSource) -> Wanted | None:
    """The rows that these heads, trained in one pass, read; None where they read no map in bands in part, of whatever
    image."""
    heads, spec = tuple(heads), source.spec
    finest = min(spec.levels, key=lambda level: level.stride)
    h, w = (side * finest.stride for side in finest.max_hw)  # the more cells, the sooner boxes are the cheaper way
    if not levels_in_part(heads, spec, (h, w)):
        return None
    return RowsUnderBoxes(spec, source.categories, heads)
