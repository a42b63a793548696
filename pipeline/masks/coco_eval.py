"""pycocotools on results and ground truth in memory: the twelve COCO figures, in percent as papers print them."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from featcache import GroundTruth, ImageInfo

from . import rle
from .results import Result

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_ground_truth(
    images: Sequence[ImageInfo], truths: Sequence[GroundTruth], categories: Sequence[dict[str, Any]]
) -> COCO:
    """The COCO object that the annotation file would give for these images."""
    annotations = [
        {
            "id": int(truth.ids[row]),
            "image_id": info.id,
            "category_id": int(truth.category_ids[row]),
            "bbox": truth.boxes_xywh[row].tolist(),
            "area": float(truth.areas[row]),
            "iscrowd": int(truth.iscrowd[row]),
            "segmentation": rle.as_coco(truth.rles[row], (info.height, info.width)),
        }
        for info, truth in zip(images, truths, strict=True)
        for row in range(len(truth))
    ]
    records = [{"id": i.id, "height": i.height, "width": i.width, "file_name": i.file_name} for i in images]
    return _coco({"images": records, "annotations": annotations, "categories": list(categories)})


def coco_figures(truth: COCO, results: Sequence[Result], kind: Literal["bbox", "segm"]) -> dict[str, float | None]:
    """The twelve figures by name; None where the ground truth has no object of that size.

    Sizes of detections are those of what is compared: box areas for `bbox`, mask areas for `segm`.
    """
    detections = _coco(
        {**truth.dataset, "annotations": [_detection(i, r, kind) for i, r in enumerate(results, start=1)]}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, detections, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: _percent(float(value)) for name, value in zip(FIGURES, evaluation.stats, strict=True)}


def _percent(value: float) -> float | None:
    return None if value < 0 else round(100 * value, 4)


def _detection(number: int, result: Result, kind: str) -> dict[str, Any]:
    annotation = {**result, "id": number, "iscrowd": 0}
    if kind == "bbox":
        annotation["area"] = result["bbox"][2] * result["bbox"][3]
    else:
        annotation["area"] = rle.area(result["segmentation"]["counts"], tuple(result["segmentation"]["size"]))
    return annotation


def _coco(dataset: Any) -> COCO:
    """COCO reads files only; this is what its constructor and `loadRes` do with the object in memory."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
