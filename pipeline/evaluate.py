"""A cache and a run -> COCO AP. Nothing else is opened: no image, no annotation file, no detector."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO

from featcache.progress import Progress

from .data.coco import Category, contiguous_labels
from .data.sources import Batch, Cached
from .data.transforms import view_to_original
from .errors import PipelineError
from .files import write_json
from .heads.base import Masks
from .masks.coco_eval import coco_figures, coco_ground_truth
from .masks.matching import in_box_iou, match_boxes
from .masks.paste import paste
from .masks.references import box_logits, oracle_logits
from .masks.results import Result, box_results, mask_results
from .training.checkpoint import check_features, load_head

Reference = Literal["box", "oracle"]
Predict = Callable[[Batch], Masks]
"""A batch of one image -> its masks."""


def main(
    *, cache: Path, run: Path, reference: Reference | None = None, holdout: int = 0, device: str = "cpu"
) -> dict[str, Any]:
    """Evaluate the head of `run` on every image of the cache; writes metrics, results and quality.json into `run`.

    Returns the metrics: `bbox` is the AP of the frozen detector by its own scores, `segm` that of the masks by theirs,
    `mask_iou` the mean, over matched detections, of the mask's IoU with the ground truth inside the box; quality.json
    has the same for each image, over its objects, those that no detection matched counting as zero. `reference`
    takes the place of the head: `box` fills the boxes, `oracle` is the best that 32 x 32 masks in these boxes can do.
    holdout: only every n-th image, those that a training with `holdout=n` left out, for choosing hyper-parameters.
    """
    source = Cached(cache, device)
    categories, view = source.categories, source.cache.views[0]
    predict = _reference(reference, categories) if reference else _head(run, source, holdout, device)
    indices = images_to_evaluate(source, holdout)
    found: list[ImageResults] = []
    with Progress(len(indices), "images") as progress:
        for index in indices:
            batch = source.batch([(index, view)])
            found.append(image_results(batch, predict(batch), categories))
            progress.update(1)
    metrics = _metrics(source, indices, found)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "results.json", [result for image in found for result in image.masks])
    ids = [source.cache.images[index].id for index in indices]
    write_json(run / "quality.json", [image.quality(image_id) for image_id, image in zip(ids, found, strict=True)])
    write_json(run / "metrics.json", metrics, indent=2)
    return metrics


@dataclass(frozen=True)
class ImageResults:
    """What one image adds: results in COCO's format, and the mask IoU of each matched detection."""

    boxes: list[Result]
    masks: list[Result]
    ious: list[float]
    objects: int
    """In the ground truth, crowds apart."""

    def quality(self, image_id: int) -> dict[str, Any]:
        """How well this image came out, to be sorted by."""
        mean = round(sum(self.ious) / self.objects, 4) if self.objects else None
        return {"image_id": image_id, "objects": self.objects, "matched": len(self.ious), "mask_iou": mean}


def image_results(batch: Batch, masks: Masks, categories: Sequence[Category]) -> ImageResults:
    """Results of a batch of one image; its masks are pasted and run-length encoded here, so that none outlives it."""
    info, view, truth = batch.infos[0], batch.views[0], batch.ground_truth[0]
    image_hw = (info.height, info.width)
    boxes_xyxy, labels = view_to_original(masks.boxes.cpu(), image_hw, view), masks.labels.cpu()
    counts = paste(masks.mask_logits, masks.grid_boxes, image_hw, view)
    boxes = box_results(info.id, boxes_xyxy, batch.features.scores[0], labels, [c["id"] for c in categories])
    pairs = match_boxes(boxes_xyxy, labels, truth, contiguous_labels(truth, categories))
    matched = masks.boxes[[detection for detection, _ in pairs]]
    filled = paste(box_logits(matched), matched, image_hw, view)
    ious = [in_box_iou(counts[n], truth.rles[k], box, image_hw) for (n, k), box in zip(pairs, filled, strict=True)]
    objects = len(truth) - int(truth.iscrowd.sum())
    return ImageResults(boxes, mask_results(boxes, masks.scores, counts, image_hw), ious, objects)


def _metrics(source: Cached, indices: list[int], found: list[ImageResults]) -> dict[str, Any]:
    truth = truth_of(source, indices)
    segm = coco_figures(truth, [result for image in found for result in image.masks], "segm")
    bbox = coco_figures(truth, [result for image in found for result in image.boxes], "bbox")
    return as_metrics(segm, bbox, [iou for image in found for iou in image.ious], len(indices))


def truth_of(source: Cached, indices: Sequence[int]) -> COCO:
    """The ground truth of these images, for `coco_figures`."""
    images = [source.cache.images[index] for index in indices]
    return coco_ground_truth(images, [source.cache.ground_truth(index) for index in indices], source.categories)


def as_metrics(
    segm: Mapping[str, float | None], bbox: Mapping[str, float | None], ious: Sequence[float], images: int
) -> dict[str, Any]:
    """The content of metrics.json; ious: of all matched detections."""
    mean = round(float(np.mean(ious)), 4) if ious else None
    return {"segm": segm, "bbox": bbox, "mask_iou": mean, "matched": len(ious), "images": images}


def images_to_evaluate(source: Cached, holdout: int) -> list[int]:
    """Positions of the images that are extracted, of those held out; what is missing is counted on stderr."""
    indices = source.finished(source.cache.views[:1])
    if len(indices) < len(source):
        missing = f"{len(source) - len(indices)} of {len(source)} images of {source.cache.path} are not extracted"
        print(f"warning: {missing} and are left out of the evaluation", file=sys.stderr)
    return [index for index in indices if not holdout or index % holdout == 0]


def _head(run: Path, source: Cached, holdout: int, device: str) -> Predict:
    head, trained = load_head(run, device)
    check_features(trained, source.cache.spec, f"cache {source.cache.path}")
    left_out = trained.recipe.train.holdout
    if holdout and left_out != holdout and next(head.parameters(), None) is not None:
        raise PipelineError(
            f"{run} was trained with holdout={left_out}, so it has seen images that holdout={holdout} leaves out",
            f"train with holdout={holdout}, or evaluate on another cache",
        )
    return lambda batch: head.predict(batch.features, batch.counts)[0]


def _reference(kind: Reference, categories: Sequence[Category]) -> Predict:
    def predict(batch: Batch) -> Masks:
        features, info, truth = batch.features, batch.infos[0], batch.ground_truth[0]
        boxes, labels = features.boxes[0], features.labels[0]
        if kind == "box":
            logits = box_logits(boxes)
        else:
            image_hw = (info.height, info.width)
            boxes_xyxy = view_to_original(boxes, image_hw, batch.views[0])
            logits = oracle_logits(boxes_xyxy, labels, truth, contiguous_labels(truth, categories), image_hw)
            if batch.views[0] == "hflip":
                logits = logits.flip(-1)
        return Masks(mask_logits=logits, boxes=boxes, scores=features.scores[0], labels=labels)

    return predict
