"""The best and the worst images of an evaluation, the ground truth beside the masks; and all of them on one sheet."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from featcache import Cache

from .data.coco import Category
from .data.images import open_image
from .errors import PipelineError
from .masks import rle
from .masks.results import Result
from .masks.viz import draw_masks, sheet
from .predict import overlay

TITLES = ("best: ground truth", "best: masks", "worst: ground truth", "worst: masks")
MIN_SCORE = 0.4
LEAST_WIDTH = 500
"""Pixels; narrower images are enlarged before drawing."""


@dataclass(frozen=True)
class Case:
    """One image of the best or of the worst, drawn."""

    kind: str
    """`best` or `worst`."""
    image_id: int
    mask_iou: float
    """In the box, mean over its objects, zero for a missed one."""
    objects: int
    matched: int
    truth: Image.Image
    masks: Image.Image
    """Those of at least `MIN_SCORE`."""


def main(*, cache: Path, run: Path, out: Path, count: int = 6) -> Path:
    """Draw the `count` best and worst images of the last `evaluate` of this run on this cache; returns `out`."""
    found = find_cases(cache=cache, run=run, count=count)
    best, worst = ([case for case in found if case.kind == kind] for kind in ("best", "worst"))
    pictures = [image for pair in zip(best, worst, strict=True) for case in pair for image in (case.truth, case.masks)]
    sheet(pictures, columns=4, titles=TITLES).save(out)
    return out


def find_cases(*, cache: Path, run: Path, count: int) -> list[Case]:
    """The `count` best images of the last `evaluate` of this run on this cache, best first; then as many, worst first.

    An image's quality is that of quality.json. Needs the folder of images that the cache was extracted from.
    """
    opened = Cache(cache)
    categories: Any = opened.spec.recipe["categories"]
    folder = Path(str(opened.spec.recipe["images_folder"]))
    if not (run / "quality.json").is_file():
        raise PipelineError(f"{run} was not evaluated", f"python -m pipeline evaluate --cache {cache} --run {run}")
    rows = [row for row in json.loads((run / "quality.json").read_text()) if row["objects"]]
    rows.sort(key=lambda row: -row["mask_iou"])
    count = min(count, len(rows) // 2)
    chosen = [("best", row) for row in rows[:count]] + [("worst", row) for row in reversed(rows[len(rows) - count :])]
    positions = {info.id: index for index, info in enumerate(opened.images)}
    if missing := [row["image_id"] for _, row in chosen if row["image_id"] not in positions]:
        raise PipelineError(f"{run} was evaluated on another cache: {cache} has no image {missing[0]}", "give that one")
    results = _results_of(run, {row["image_id"] for _, row in chosen})
    found: list[Case] = []
    for kind, row in chosen:
        index = positions[row["image_id"]]
        image = open_image(folder / opened.images[index].file_name)
        masks = sorted(results[row["image_id"]], key=lambda result: -result["score"])
        zoom = max(1, round(LEAST_WIDTH / image.width))
        truth = truth_overlay(image, opened, index, categories, zoom)
        found.append(Case(kind, **row, truth=truth, masks=overlay(image, masks, categories, MIN_SCORE, zoom=zoom)))
    return found


def truth_overlay(
    image: Image.Image, cache: Cache, index: int, categories: list[Category], zoom: int = 1
) -> Image.Image:
    """The image, `zoom` times as large, with its ground-truth masks."""
    truth = cache.ground_truth(index)
    names = {category["id"]: category["name"] for category in categories}
    masks = [rle.decode(counts, (image.height, image.width)) for counts in truth.rles]
    return draw_masks(image, masks, [names[category_id] for category_id in truth.category_ids.tolist()], zoom=zoom)


def _results_of(run: Path, image_ids: set[int]) -> dict[int, list[Result]]:
    results: dict[int, list[Result]] = defaultdict(list)
    for result in json.loads((run / "results.json").read_text()):
        if result["image_id"] in image_ids:
            results[result["image_id"]].append(result)
    return results
