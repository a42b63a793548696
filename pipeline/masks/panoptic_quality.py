"""Panoptic quality, image by image: PQ, SQ and RQ over all classes, things and stuff.

The rules are those of COCO's panopticapi: Kirillov et al., Panoptic Segmentation, section 4.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .id_map import VOID, IdMap

MATCH = 0.5
"""A segment is found by one of its class with a greater IoU, of which there is no more than one."""
IGNORED = 0.5
"""A segment that finds nothing is no mistake if more than this share of it lies in void and crowds of its class."""


@dataclass(frozen=True)
class TruthSegment:
    """One segment of the ground truth."""

    category_id: int
    iscrowd: bool = False


@dataclass
class Tally:
    """Of one class."""

    iou: float = 0.0
    """Summed over the matches."""
    matched: int = 0
    missed: int = 0
    invented: int = 0

    @property
    def counts(self) -> bool:
        """Whether there was such a segment, in the ground truth or the results."""
        return self.matched + self.missed + self.invented > 0

    @property
    def quality(self) -> tuple[float, float, float]:
        """PQ, SQ and RQ in 0-1."""
        size = self.matched + 0.5 * self.missed + 0.5 * self.invented
        return self.iou / size, self.iou / self.matched if self.matched else 0.0, self.matched / size


class PanopticQuality:
    """What has been seen so far."""

    def __init__(self, things: Mapping[int, bool]) -> None:
        """things: of each category id, whether it is a thing."""
        self._things = dict(things)
        self.tallies = {category_id: Tally() for category_id in things}

    def add(
        self, truth_ids: IdMap, truth: Mapping[int, TruthSegment], found_ids: IdMap, found: Mapping[int, int]
    ) -> None:
        """One image. truth, found: the segments of the id maps; of those found, the category id. 0 is void."""
        base = int(found_ids.max()) + 1
        pairs, counts = np.unique(truth_ids * base + found_ids, return_counts=True)
        common = {divmod(pair, base): n for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True)}
        truth_area, found_area = Counter[int](), Counter[int]()
        for (truth_id, found_id), area in common.items():
            truth_area[truth_id] += area
            found_area[found_id] += area
        hits = {VOID}
        hit_by = {VOID}
        for (truth_id, found_id), area in common.items():
            if VOID in (truth_id, found_id) or truth[truth_id].iscrowd:
                continue
            category_id = truth[truth_id].category_id
            if found[found_id] != category_id:
                continue
            union = truth_area[truth_id] + found_area[found_id] - area - common.get((VOID, found_id), 0)
            if area / union > MATCH:
                tally = self.tallies[category_id]
                tally.iou += area / union
                tally.matched += 1
                hits.add(truth_id)
                hit_by.add(found_id)
        for truth_id, segment in truth.items():
            if truth_id not in hits and not segment.iscrowd:
                self.tallies[segment.category_id].missed += 1
        for found_id, category_id in found.items():
            if found_id not in hit_by:
                crowds = [i for i, one in truth.items() if one.iscrowd and one.category_id == category_id]
                ignored = sum(common.get((i, found_id), 0) for i in (VOID, *crowds))
                if ignored <= IGNORED * found_area[found_id]:
                    self.tallies[category_id].invented += 1

    def take(self, other: "PanopticQuality") -> None:
        """The images that another has seen, too."""
        for category_id, theirs in other.tallies.items():
            mine = self.tallies[category_id]
            mine.iou += theirs.iou
            mine.matched += theirs.matched
            mine.missed += theirs.missed
            mine.invented += theirs.invented

    def figures(self) -> dict[str, float | None]:
        """PQ, SQ and RQ in percent: means over the classes that occur; None where none does. Then the same of things
        and of stuff, named as detectron2 names them."""
        figures: dict[str, float | None] = {}
        for suffix, wanted in (("", (True, False)), ("_th", (True,)), ("_st", (False,))):
            chosen = [t for i, t in self.tallies.items() if t.counts and self._things[i] in wanted]
            figures |= {f"{name}{suffix}": value for name, value in _means([tally.quality for tally in chosen])}
        return figures

    def classes(self) -> dict[int, dict[str, float | None]]:
        """Category id -> PQ, SQ and RQ in percent, None where it does not occur."""
        return {i: dict(_means([tally.quality] if tally.counts else [])) for i, tally in self.tallies.items()}


def _means(qualities: Sequence[tuple[float, float, float]]) -> list[tuple[str, float | None]]:
    names = ("PQ", "SQ", "RQ")
    if not qualities:
        return [(name, None) for name in names]
    return [(n, round(100 * float(value), 4)) for n, value in zip(names, np.mean(qualities, axis=0), strict=True)]
