"""Boundary AP beside pycocotools, whose overlaps are replaced by those that the paper defines, found with scipy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from noisy import noisy_results, official
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_erosion
from tiny import write_coco

from pipeline.data.coco import load_coco
from pipeline.masks import boundary, rle
from pipeline.masks.boundary import boundary_figures
from pipeline.masks.coco_eval import FIGURES, coco_figures, coco_ground_truth

pytest.importorskip("faster_coco_eval")

SQUARE = np.ones((3, 3), dtype=bool)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What of a mask lies within 2 % of the diagonal from its edge; the edge of the image is one."""
    width = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    return mask & ~binary_erosion(np.pad(mask, 1), SQUARE, iterations=width)[1:-1, 1:-1]


def both_ious(found: list[Any], objects: list[Any]) -> NDArray[np.float64]:
    """The lesser of mask and boundary IoU, "n k"; of a crowd, whose outline means nothing, the share inside it."""
    masks = [[coco_mask.decode(one["segmentation"]).astype(bool) for one in ones] for ones in (found, objects)]
    values = np.zeros((len(found), len(objects)))
    for n, mine in enumerate(masks[0]):
        for k, other in enumerate(masks[1]):
            pairs = [(mine, other), (outline(mine), outline(other))]
            values[n, k] = min((a & b).sum() / max((a | b).sum(), 1) for a, b in pairs)
            if objects[k]["iscrowd"]:
                values[n, k] = (mine & other).sum() / max(mine.sum(), 1)
    return values


class ByBoundary(COCOeval):
    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803
        found, objects = self._dts[imgId, catId], self._gts[imgId, catId]
        found = sorted(found, key=lambda one: -one["score"])[: self.params.maxDets[-1]]
        return both_ious(found, objects) if found and objects else []


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, COCO, list[Any]]:
    file = write_coco(tmp_path)
    coco = load_coco(file)
    results = [{key: one[key] for key in one if key != "bbox"} for one in noisy_results(coco)]
    return file, coco_ground_truth(coco.images, coco.ground_truth, coco.categories), results


def test_the_package_counts_as_pycocotools_does(case: tuple[Path, COCO, list[Any]]) -> None:
    _, truth, results = case
    assert boundary._figures(truth, results, "segm") == coco_figures(truth, results, "segm")


def test_figures_are_those_of_outlines_by_erosion(case: tuple[Path, COCO, list[Any]]) -> None:
    file, truth, results = case
    figures = boundary_figures(truth, results)
    expected = official(file, results, "segm", ByBoundary)
    for name, value in zip(FIGURES, expected, strict=True):
        assert figures[name] == (None if value < 0 else pytest.approx(100 * value, abs=1e-4)), name
    assert 1 < (figures["AP"] or 0) < (coco_figures(truth, results, "segm")["AP"] or 0)


def test_a_hole_is_an_outline_too() -> None:
    """A square of 100 with a hole of 2 in 10,000: nothing to the mask IoU, an outline more to the boundary's."""
    full = np.zeros((150, 150), dtype=bool)
    full[20:120, 20:120] = True
    holed = full.copy()
    holed[69:71, 69:71] = False
    objects = [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1e4, "bbox": [20, 20, 100, 100]}]
    objects[0]["segmentation"] = rle.as_coco(rle.encode(full), full.shape)
    truth = COCO()
    truth.dataset = {"images": [{"id": 1, "height": 150, "width": 150}], "categories": [{"id": 1, "name": "a"}]}
    truth.dataset["annotations"] = objects
    truth.createIndex()
    counts = rle.encode(holed).decode()
    results = [{"image_id": 1, "category_id": 1, "score": 1.0, "segmentation": {"size": [150, 150], "counts": counts}}]
    # 2 % of the diagonal are 4 pixels: a frame of 100^2 - 92^2 in both, 10^2 - 2^2 around the hole in one: IoU 0.941
    assert boundary_figures(truth, results)["AP"] == 90
    assert coco_figures(truth, results, "segm")["AP"] == 100


def test_no_results_is_an_ap_of_zero(case: tuple[Path, COCO, list[Any]]) -> None:
    assert boundary_figures(case[1], [])["AP"] == 0
