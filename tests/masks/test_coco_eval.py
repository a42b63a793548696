import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import write_coco

from pipeline.data.coco import CocoSet, load_coco
from pipeline.masks import rle
from pipeline.masks.coco_eval import FIGURES, Result, coco_figures, coco_ground_truth


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_coco(tmp_path)


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


def official(annotations: Path, results: list[Any], kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_figures_equal_those_of_pycocotools_on_the_file(annotations: Path, kind: Any) -> None:
    coco = load_coco(annotations)
    results = noisy_results(coco)
    figures = coco_figures(coco_ground_truth(coco.images, coco.ground_truth, coco.categories), results, kind)
    given = copy.deepcopy(results)
    if kind == "segm":
        for result in given:
            del result["bbox"]  # otherwise loadRes takes the area of the box for that of the mask
    expected = official(annotations, given, kind)
    assert 1 < figures["AP"] < 99
    for name, value in zip(FIGURES, expected, strict=True):
        assert figures[name] == (None if value < 0 else pytest.approx(100 * value, abs=1e-4))
    assert figures["APl"] is None  # no object of the pictures is that large
    json.dumps(figures)


def test_no_results_is_an_ap_of_zero(annotations: Path) -> None:
    coco = load_coco(annotations)
    truth = coco_ground_truth(coco.images, coco.ground_truth, coco.categories)
    assert coco_figures(truth, [], "segm")["AP"] == 0
