"""How well a head for semantic or panoptic segmentation does, image by image: PQ, mIoU, and its segments as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data.coco import Category, view_of
from .data.sources import Batch
from .files import write_json
from .masks.coco_eval import Figures
from .masks.id_map import paint
from .masks.mean_iou import MeanIoU
from .masks.panoptic import panoptic
from .masks.panoptic_quality import PanopticQuality, TruthSegment
from .masks.query_masks import QueryMasks
from .masks.segment_files import SegmentFiles, class_segments, segments_info
from .masks.semantic import UNSEEN, semantic
from .training.segment_objects import segment_labels

KINDS = ("panoptic", "semantic")
"""Names of the figures in metrics.json, and of the files."""


class SegmentScores:
    """Of one head; a head for panoptic segmentation is judged as one for semantic segmentation too.

    Pixels of the ground truth without a segment count for nothing, nor do images without any. In `mIoU` crowds are
    pixels of their class, as in the semantic ground truth that Mask2Former makes of the panoptic one.
    """

    def __init__(self, folder: Path, first: QueryMasks, categories: Sequence[Category]) -> None:
        """folder: the run. first: any queries of this head. categories: of the panoptic ground truth."""
        self.classes, self.categories = first.classes, list(categories)
        self._folder = folder
        self._kinds = KINDS if first.task == "panoptic" else KINDS[1:]
        self._quality, self._iou = self._nothing_seen()
        self._by_image: list[dict[str, Any]] = []
        self._files = {kind: SegmentFiles(folder / kind) for kind in self._kinds}

    def add(self, batch: Batch, queries: QueryMasks) -> None:
        """A batch of one image."""
        truth, info = batch.segments(0), batch.infos[0]
        if not len(truth):
            return
        view, image_hw = view_of(info, batch.views[0]), (info.height, info.width)
        labels = segment_labels(truth.category_ids.tolist(), self.classes)
        truth_ids = paint(truth, image_hw)
        quality, iou = self._nothing_seen()
        if "panoptic" in self._kinds:
            found = panoptic(queries, view)
            pairs = zip(truth.category_ids.tolist(), truth.iscrowd.tolist(), strict=True)
            wanted = {row: TruthSegment(*pair) for row, pair in enumerate(pairs, start=1)}
            told = {one.id: one.segment_class.category_id for one in found.segments}
            quality.add(truth_ids, wanted, found.ids, told)
            self._files["panoptic"].add(info, found.ids, segments_info(found))
        truth_labels = np.array([UNSEEN, *labels])[truth_ids]
        found_labels = semantic(queries, view)
        iou.add(truth_labels, found_labels)
        self._files["semantic"].add(info, *class_segments(found_labels, self.classes))
        self._quality.take(quality)
        self._iou.take(iou)
        pq = {"PQ": quality.figures()["PQ"]} if "panoptic" in self._kinds else {}
        self._by_image.append({"image_id": info.id, **pq, "mIoU": iou.figures()["mIoU"]})

    def write(self) -> dict[str, Figures]:
        """Put the files into the run; returns the figures by kind."""
        for files in self._files.values():
            files.keep(self.categories)
        figures = {"panoptic": self._quality.figures(), "semantic": self._iou.figures()}
        return {kind: {**figures[kind], "images": len(self._by_image)} for kind in self._kinds}

    def write_classes(self, file: Path) -> None:
        """PQ, SQ, RQ and IoU of each class, as JSON."""
        quality, names = self._quality.classes(), {one["id"]: one["name"] for one in self.categories}
        rows: list[dict[str, Any]] = []
        for one, iou in zip(self.classes, self._iou.classes(), strict=True):
            row = {"category_id": one.category_id, "name": names.get(one.category_id, ""), "isthing": one.isthing}
            rows.append({**row, **(quality[one.category_id] if "panoptic" in self._kinds else {}), "IoU": iou})
        write_json(file, rows, indent=2)

    def write_images(self, file: Path) -> None:
        """Of each image its id, PQ (panoptic) and mIoU over the classes that it has, in percent, as JSON."""
        write_json(file, self._by_image)

    def discard(self) -> None:
        """Leave nothing of it."""
        for files in self._files.values():
            files.discard()

    def _nothing_seen(self) -> tuple[PanopticQuality, MeanIoU]:
        return PanopticQuality({one.category_id: one.isthing for one in self.classes}), MeanIoU(len(self.classes))
