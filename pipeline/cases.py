"""The best and the worst images of an evaluation on one sheet, the ground truth beside the masks."""

import json
from collections import defaultdict
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


def main(*, cache: Path, run: Path, out: Path, count: int = 6) -> Path:
    """Draw the `count` best and worst images of the last `evaluate` of this run on this cache; returns `out`.

    An image's quality is that of quality.json: the mask IoU in the box, mean over its objects, zero for a missed one.
    Needs the folder of images that the cache was extracted from.
    """
    opened = Cache(cache)
    categories: Any = opened.spec.recipe["categories"]
    folder = Path(str(opened.spec.recipe["images_folder"]))
    if not (run / "quality.json").is_file():
        raise PipelineError(f"{run} was not evaluated", f"python -m pipeline evaluate --cache {cache} --run {run}")
    rows = [row for row in json.loads((run / "quality.json").read_text()) if row["objects"]]
    rows.sort(key=lambda row: -row["mask_iou"])
    count = min(count, len(rows) // 2)
    results: dict[int, list[Result]] = defaultdict(list)
    for result in json.loads((run / "results.json").read_text()):
        results[result["image_id"]].append(result)
    positions = {info.id: index for index, info in enumerate(opened.images)}
    pictures: list[Image.Image] = []
    for pair in zip(rows[:count], reversed(rows[-count:]), strict=True):
        for row in pair:
            index = positions[row["image_id"]]
            image = open_image(folder / opened.images[index].file_name)
            found = sorted(results[row["image_id"]], key=lambda result: -result["score"])
            zoom = max(1, round(LEAST_WIDTH / image.width))
            pictures.append(truth_overlay(image, opened, index, categories, zoom))
            pictures.append(overlay(image, found, categories, MIN_SCORE, zoom=zoom))
    sheet(pictures, columns=4, titles=TITLES).save(out)
    return out


def truth_overlay(
    image: Image.Image, cache: Cache, index: int, categories: list[Category], zoom: int = 1
) -> Image.Image:
    """The image, `zoom` times as large, with its ground-truth masks."""
    truth = cache.ground_truth(index)
    names = {category["id"]: category["name"] for category in categories}
    masks = [rle.decode(counts, (image.height, image.width)) for counts in truth.rles]
    return draw_masks(image, masks, [names[category_id] for category_id in truth.category_ids.tolist()], zoom=zoom)
