"""The best and the worst images of an evaluation, the ground truth beside the masks; and all of them on one sheet.

Of a head for semantic or panoptic segmentation they are judged and drawn by their segments.
"""

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featcache import Cache

from .data.coco import Category
from .data.images import open_image
from .data.panoptic import CATEGORIES, PANOPTIC
from .data.sources import Cached
from .errors import PipelineError, UsageError
from .evaluation import DETAILS, QUALITY, RESULTS, SEGMENT_QUALITY
from .masks import rle
from .masks.id_map import VOID, paint, read_png
from .masks.results import Result
from .masks.segment_overlay import segment_overlay
from .masks.viz import draw_masks, sheet
from .predict import MIN_SCORE, overlay

TITLES = ("best: ground truth", "best: masks", "worst: ground truth", "worst: masks")
LEAST_WIDTH = 500
"""Pixels; narrower images are enlarged before drawing."""

Row = Mapping[str, Any]
"""What an evaluation says of one image."""


@dataclass(frozen=True)
class Case:
    """One image of the best or of the worst, drawn."""

    kind: str
    """`best` or `worst`."""
    image_id: int
    figure: str
    """What it is chosen by: `mask_iou` (in the box, mean over its objects, zero for a missed one), `PQ` or `mIoU`."""
    value: float
    words: str
    """The same for a person, and what else there is to say."""
    truth: Image.Image
    masks: Image.Image
    """Of instances those of at least `MIN_SCORE`."""


def main(*, cache: Path, run: Path, out: Path, count: int = 6) -> Path:
    """Draw the `count` best and worst images of the last `evaluate` of this run on this cache; returns `out`."""
    found = find_cases(cache=cache, run=run, count=count)
    best, worst = ([case for case in found if case.kind == kind] for kind in ("best", "worst"))
    pictures = [image for pair in zip(best, worst, strict=True) for case in pair for image in (case.truth, case.masks)]
    if not pictures:
        raise PipelineError(f"{run} was evaluated on fewer than two images with objects", "evaluate it on more")
    sheet(pictures, columns=4, titles=TITLES).save(out)
    return out


def check_sheet(cache: Path, out: Path) -> None:
    """Raise PipelineError where the sheet of an evaluation on this cache cannot be drawn: before that evaluation."""
    known = [ending for ending, form in Image.registered_extensions().items() if form in Image.SAVE]
    if out.suffix.lower() not in known:
        raise UsageError(f"no picture can be written as '{out}': unknown ending '{out.suffix}'", "such as sheet.jpg")
    if not out.parent.is_dir():
        raise PipelineError(f"there is no directory {out.parent} for the sheet", "make it, or give another --sheet")
    folder = Cached(cache).spec.recipe["images_folder"]
    if not (isinstance(folder, str) and Path(folder).is_dir()):
        raise PipelineError(
            f"the pictures of {cache} are not in {folder}, from where they were extracted",
            "put them back there, or leave out --sheet",
        )


def find_cases(*, cache: Path, run: Path, count: int) -> list[Case]:
    """The `count` best images of the last `evaluate` of this run on this cache, best first; then as many, worst first.

    An image's quality is that of quality.json, or of metrics/segment_quality.json for a head of segments. Needs the
    folder of images that the cache was extracted from.
    """
    opened = Cached(cache).cache
    folder = Path(str(opened.spec.recipe["images_folder"]))
    if not (run / QUALITY).is_file():
        raise PipelineError(f"{run} was not evaluated", f"python -m pipeline evaluate --cache {cache} --run {run}")
    drawing = _Segments(run, opened) if (run / DETAILS / SEGMENT_QUALITY).is_file() else _Instances(run, opened)
    rows = sorted(drawing.rows, key=lambda row: -row[drawing.figure])
    count = min(count, len(rows) // 2)
    chosen = [("best", row) for row in rows[:count]] + [("worst", row) for row in reversed(rows[len(rows) - count :])]
    positions = {info.id: index for index, info in enumerate(opened.images)}
    if missing := [row["image_id"] for _, row in chosen if row["image_id"] not in positions]:
        raise PipelineError(f"{run} was evaluated on another cache: {cache} has no image {missing[0]}", "give that one")
    drawing.prepare({row["image_id"] for _, row in chosen})
    found: list[Case] = []
    for kind, row in chosen:
        index = positions[row["image_id"]]
        image = open_image(folder / opened.images[index].file_name)
        zoom = max(1, round(LEAST_WIDTH / image.width))
        truth, masks = drawing.truth(image, index, zoom), drawing.masks(image, row["image_id"], zoom)
        value = row[drawing.figure]
        found.append(Case(kind, row["image_id"], drawing.figure, value, drawing.words(row), truth=truth, masks=masks))
    return found


class _Drawing(ABC):
    """What one kind of head says of the images, and how it is drawn."""

    figure: str
    rows: list[Row]
    """Of the images that have a figure."""

    @abstractmethod
    def prepare(self, image_ids: set[int]) -> None:
        """Read what `masks` needs of these images."""

    @abstractmethod
    def truth(self, image: Image.Image, index: int, zoom: int) -> Image.Image:
        """The image, `zoom` times as large, with its ground truth."""

    @abstractmethod
    def masks(self, image: Image.Image, image_id: int, zoom: int) -> Image.Image:
        """The same with what the head found."""

    @abstractmethod
    def words(self, row: Row) -> str:
        """See `Case`."""


class _Instances(_Drawing):
    figure = "mask_iou"

    def __init__(self, run: Path, cache: Cache) -> None:
        self.rows = [row for row in json.loads((run / QUALITY).read_text()) if row["objects"]]
        self._run, self._cache = run, cache
        self._categories: list[Category] = cache.spec.recipe["categories"]
        self._results: dict[int, list[Result]] = defaultdict(list)

    def prepare(self, image_ids: set[int]) -> None:
        for result in json.loads((self._run / RESULTS).read_text()):
            if result["image_id"] in image_ids:
                self._results[result["image_id"]].append(result)

    def truth(self, image: Image.Image, index: int, zoom: int) -> Image.Image:
        truth = self._cache.ground_truth(index)
        names = {category["id"]: category["name"] for category in self._categories}
        masks = [rle.decode(counts, (image.height, image.width)) for counts in truth.rles]
        return draw_masks(image, masks, [names[category_id] for category_id in truth.category_ids.tolist()], zoom=zoom)

    def masks(self, image: Image.Image, image_id: int, zoom: int) -> Image.Image:
        results = sorted(self._results[image_id], key=lambda result: -result["score"])
        return overlay(image, results, self._categories, MIN_SCORE, zoom=zoom)

    def words(self, row: Row) -> str:
        return f"mask IoU {row['mask_iou']:.2f}, {row['matched']} of {row['objects']} objects found"


class _Segments(_Drawing):
    def __init__(self, run: Path, cache: Cache) -> None:
        rows: list[Row] = json.loads((run / DETAILS / SEGMENT_QUALITY).read_text())
        self.figure = "PQ" if any("PQ" in row for row in rows) else "mIoU"
        self.rows = [row for row in rows if row[self.figure] is not None]
        self._cache, self._folder = cache, run / ("panoptic" if self.figure == "PQ" else "semantic")
        self._categories: list[Any] = cache.spec.recipe[CATEGORIES]
        self._found: dict[int, dict[str, Any]] = {}

    def prepare(self, image_ids: set[int]) -> None:
        listed = json.loads(self._folder.with_suffix(".json").read_text())["annotations"]
        self._found = {one["image_id"]: one for one in listed if one["image_id"] in image_ids}

    def truth(self, image: Image.Image, index: int, zoom: int) -> Image.Image:
        truth = self._cache.ground_truth(index, PANOPTIC)
        ids, category_ids = paint(truth, (image.height, image.width)), truth.category_ids.tolist()
        if self.figure == "PQ":
            things = {one["id"]: one["isthing"] for one in self._categories}
            segments = [
                {"id": row, "category_id": one, "isthing": things[one]} for row, one in enumerate(category_ids, start=1)
            ]
        else:
            ids = np.array([VOID, *category_ids])[ids]
            segments = [{"id": one, "category_id": one} for one in dict.fromkeys(category_ids)]
        return segment_overlay(image, ids, segments, self._categories, zoom=zoom)

    def masks(self, image: Image.Image, image_id: int, zoom: int) -> Image.Image:
        found = self._found[image_id]
        ids = read_png(self._folder / found["file_name"])
        return segment_overlay(image, ids, found["segments_info"], self._categories, zoom=zoom)

    def words(self, row: Row) -> str:
        return ", ".join(f"{name} {row[name]:.1f}" for name in ("PQ", "mIoU") if row.get(name) is not None)
