"""A cache whose detections are right, and what pycocotools says of results on its images."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import Tiny

from featcache import Cache, CacheWriter
from pipeline import extract
from pipeline.data.coco import load_coco
from pipeline.data.transforms import original_to_view, xywh_to_xyxy
from pipeline.masks import rle


def perfect_cache(tiny: Tiny, path: Path, view: str = "orig") -> Path:
    """A cache whose detections are the ground-truth boxes, tight around the masks, with the right labels."""
    whole = extract.main(**tiny.arguments, cache=path.with_name("source"), views=(view,))
    source, coco = Cache(whole), load_coco(tiny.annotations)
    ids = [category["id"] for category in coco.categories]
    with CacheWriter(path, source.spec, coco.images, coco.ground_truth) as writer:
        for index, (info, truth) in enumerate(zip(coco.images, coco.ground_truth, strict=True)):
            hw, entry = (info.height, info.width), source.entry(index, view)
            kept = np.flatnonzero(~truth.iscrowd)
            tight = np.array([rle.box_xywh(truth.rles[k], hw) for k in kept]).reshape(-1, 4)
            boxes = original_to_view(xywh_to_xyxy(torch.from_numpy(tight)), hw, view).float()
            labels = torch.tensor([ids.index(c) for c in truth.category_ids[kept].tolist()], dtype=torch.int64)
            writer.put(
                index,
                view,
                maps=entry.maps,
                queries=entry.queries[: len(kept)],
                boxes=boxes,
                scores=torch.linspace(0.9, 0.5, len(kept)),
                labels=labels,
                input_hw=entry.input_hw,
            )
    return path


def read_back(tiny: Tiny, file: Path, kind: Any) -> list[float | None]:
    """The twelve figures that pycocotools gives for a file of results, beside the annotation file."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tiny.annotations)
        judge = COCOeval(truth, truth.loadRes(str(file)), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [None if value < 0 else round(100 * value, 4) for value in judge.stats.tolist()]
