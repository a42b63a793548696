"""Which rows of a map a training can do with: those under the boxes that learn."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featcache import CacheSpec, Entry, Wanted

from ..data.coco import Category
from ..data.sources import FeatureSource, collate
from ..heads.base import MaskHead
from ..ops.roi_geometry import rows_read
from .config import TrainConfig
from .targets import learning_pairs


@dataclass(frozen=True)
class RowsUnderBoxes:
    """Of each of the levels, the rows under every box that any of these trainings may look into (`Wanted`)."""

    spec: CacheSpec
    categories: Sequence[Category]
    levels: frozenset[str]
    configs: tuple[TrainConfig, ...]

    def __call__(self, entry: Entry) -> dict[str, list[tuple[int, int]]]:
        """entry: without maps."""
        height = entry.input_hw[0]
        spans = [
            (top * height, bottom * height) for config in self.configs for top, bottom in self._edges(entry, config)
        ]
        rows: dict[str, list[tuple[int, int]]] = {}
        for name in self.levels:
            stride = self.spec.level(name).stride
            rows[name] = [rows_read(top, bottom, stride, -(-height // stride)) for top, bottom in spans]
        return rows

    def _edges(self, entry: Entry, config: TrainConfig) -> list[tuple[float, float]]:
        """Upper and lower edge, in 0-1 of the view, of every box that may learn, as far as jitter may move them."""
        detected, pairs, _ = learning_pairs(collate([entry], self.spec), 0, self.categories, config)
        _, middle, _, height = detected[pairs[:, 0].unique()].double().unbind(1)
        reach = height * (0.5 + config.jitter)
        return list(zip((middle - reach).tolist(), (middle + reach).tolist(), strict=True))


def rows_under_boxes(heads: Iterable[tuple[MaskHead, TrainConfig]], source: FeatureSource) -> Wanted | None:
    """The rows that these heads, trained in one pass, read; None where a map in bands is not there or read whole."""
    heads = list(heads)
    banded = frozenset(level.name for level in source.spec.levels if level.bands > 1)
    levels = banded.intersection(*(head.maps_under_boxes(source.spec) for head, _ in heads))
    if not levels:
        return None
    configs: dict[tuple[object, ...], TrainConfig] = {}
    for _, config in heads:
        configs[config.match, config.match_iou, config.jitter] = config
    return RowsUnderBoxes(source.spec, source.categories, levels, tuple(configs.values()))
