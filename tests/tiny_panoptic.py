"""Panoptic annotations of the eight pictures of `tiny.py`: its objects over ground and sky, and a strip of void."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

GROUND, SKY = 20, 33
CATEGORIES = [
    {"id": SKY, "name": "sky", "isthing": 0},
    {"id": 7, "name": "disc", "isthing": 1},
    {"id": 1, "name": "square", "isthing": 1},
    {"id": GROUND, "name": "ground", "isthing": 0},
    {"id": 3, "name": "triangle", "isthing": 1},
]


def write_panoptic(annotations: Path, *, without: int | None = None) -> Path:
    """Write `panoptic.json` and `panoptic/` beside the COCO annotations; ids are large, as COCO's are.

    without: id of an image that gets none.
    """
    coco, folder = COCO(annotations), annotations.parent / "panoptic"
    folder.mkdir()
    listed: list[dict[str, Any]] = []
    for image in coco.dataset["images"]:
        if image["id"] == without:
            continue
        ids = np.full((image["height"], image["width"]), 70_000)
        ids[: image["height"] // 2] = 70_001
        ids[:, -3:] = 0
        segments = {70_000: (GROUND, 0), 70_001: (SKY, 0)}
        for one in coco.loadAnns(coco.getAnnIds(image["id"])):
            ids[coco.annToMask(one).astype(bool)] = 300 + one["id"]
            segments[300 + one["id"]] = (one["category_id"], one["iscrowd"])
        name = f"{image['id']:012d}.png"
        channels = [ids % 256, ids // 256 % 256, ids // 65536]
        Image.fromarray(np.stack(channels, -1).astype(np.uint8)).save(folder / name)
        infos = [
            {"id": i, "category_id": category, "iscrowd": crowd, "area": int((ids == i).sum()), "bbox": [0, 0, 0, 0]}
            for i, (category, crowd) in segments.items()
            if (ids == i).any()
        ]
        listed.append({"image_id": image["id"], "file_name": name, "segments_info": infos})
    file = annotations.parent / "panoptic.json"
    file.write_text(json.dumps({"images": [], "annotations": listed, "categories": CATEGORIES}))
    return file


def read_ids(file: Path) -> np.ndarray:
    """Segment id of each pixel, "h w"."""
    channels = np.asarray(Image.open(file)).astype(np.int64)
    return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
