import copy
import json
from pathlib import Path
from typing import Any

import pytest
from noisy import noisy_results, official
from tiny import write_coco

from pipeline.data.coco import load_coco
from pipeline.masks.coco_eval import FIGURES, coco_figures, coco_ground_truth


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_coco(tmp_path)


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
