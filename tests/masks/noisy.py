"""Results with an AP that is neither 0 nor 100, and what pycocotools says about them."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.data.coco import CocoSet
from pipeline.masks import rle
from pipeline.masks.results import Result


def noisy_results(coco: CocoSet) -> list[Result]:
    """Shifted and relabelled ground truth with random scores: an AP that is neither 0 nor 100."""
    rng = np.random.default_rng(0)
    results: list[Result] = []
    for info, truth in zip(coco.images, coco.ground_truth, strict=True):
        for counts, category_id in zip(truth.rles, truth.category_ids.tolist(), strict=True):
            for shift in (0, 1, 6):
                mask = np.roll(rle.decode(counts, (info.height, info.width)), shift, axis=1)
                shifted = rle.encode(mask)
                results.append(
                    {
                        "image_id": info.id,
                        "category_id": category_id if rng.random() < 0.8 else 1,
                        "score": float(rng.random()),
                        "bbox": rle.box_xywh(shifted, mask.shape),
                        "segmentation": {"size": list(mask.shape), "counts": shifted.decode()},
                    }
                )
    return results


def official(annotations: Path, results: list[Any], kind: str, judge: type[COCOeval] = COCOeval) -> list[float]:
    """What pycocotools says about results on the annotation file, by its own loader."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = judge(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()
