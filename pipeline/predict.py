"""Images without annotations -> masks: a live detector and a trained head write overlays and COCO results."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from featcache import CacheSpec, ImageInfo
from featcache.progress import Progress, written

from .data.coco import Category, view_of
from .data.images import UnreadableImageError, find_images, open_image, several_unreadable
from .data.transforms import view_to_original
from .data.views import check_view
from .detectors.base import Features, FrozenDetector, source_of
from .detectors.registry import build_detector
from .files import check_folder, write_json
from .heads.base import MaskHead, Masks
from .heads.looks import looks, predict_looks
from .masks import rle
from .masks.image_results import finished
from .masks.results import Result, box_results, mask_results
from .masks.segment_files import SegmentFiles
from .masks.segment_overlay import cut_up, segment_overlay
from .masks.viz import draw_masks, sheet
from .training.checkpoint import check_features, load_head

SHEET_IMAGES = 12
MIN_SCORE = 0.4
"""Masks below are not drawn, unless another is asked for."""
WHOLE = "orig"
"""The view that is the image itself."""


def main(
    *,
    detector: str,
    weights: Path | None = None,
    run: Path,
    images: str,
    out: Path,
    min_score: float = MIN_SCORE,
    device: str = "cpu",
    views: Sequence[str] = (),
) -> Path:
    """Masks of a folder, a glob pattern or one image file; returns the output folder.

    It gets overlays/ with the masks of at least `min_score` on each image, sheet.jpg of the first twelve, results.json
    (every mask, COCO format) and images.json (id, size and file of each image). Of a head for semantic or panoptic
    segmentation the overlays show its segments; these are in semantic/ or panoptic/ and its JSON, in COCO's panoptic
    format. Images are turned upright as their EXIF data ask. Those that cannot be read are left out and listed in the
    UnreadableImageError raised at the end.

    views: masks are means over these views of the image and the image itself, each over the views that show its
    detection whole (`heads/looks.py`); the detector runs once more for each.
    """
    for view in views:
        check_view(view)
    check_folder(out, "--out")
    files = find_images(images)
    model = build_detector(detector, weights, device=device)
    head, trained = load_head(run, device)
    check_features(trained, _spec(model), f"detector '{model.name}'")
    overlays = out / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    infos: list[ImageInfo] = []
    drawn: list[Image.Image] = []
    failed: list[UnreadableImageError] = []
    segments: SegmentFiles | None = None
    size = 0
    with Progress(len(files), "images") as progress:
        for file, image_id, name in zip(files, image_ids(files), overlay_names(files), strict=True):
            try:
                image = open_image(file, upright=True)
            except UnreadableImageError as error:
                failed.append(error)
            else:
                info = ImageInfo(image_id, image.height, image.width, str(file))
                masks = predict_masks(image, model, head, info, views)
                found = coco_results(image, image_id, masks, trained.categories)
                if masks.queries is None:
                    picture = overlay(image, found, trained.categories, min_score)
                else:
                    cut = cut_up(masks.queries, (image.height, image.width))
                    picture = segment_overlay(image, *cut, trained.segment_categories)
                    segments = segments or SegmentFiles(out / masks.queries.task)
                    segments.add(info, *cut)
                picture.save(overlays / name, quality=92)
                size += (overlays / name).stat().st_size
                if len(drawn) < SHEET_IMAGES:
                    drawn.append(picture)
                results += found
                infos.append(info)
            progress.update(1, written(out, size, progress.seconds))
    if segments is not None:
        segments.keep(trained.segment_categories)
    write_json(out / "results.json", results)
    write_json(out / "images.json", [asdict(info) for info in infos], indent=2)
    if drawn:
        sheet(drawn).save(out / "sheet.jpg", quality=90)
    if failed:
        raise several_unreadable(failed, f"the results of the other {len(infos)} are in {out}")
    return out


def image_ids(files: Sequence[Path]) -> list[int]:
    """COCO's way, the number that a file is named by, where all files have one of their own; else 1, 2, 3 ..."""
    stems = [file.stem for file in files]
    if all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(files) + 1))


def overlay_names(files: Sequence[Path]) -> list[str]:
    """The files' own names as JPEG; numbered where two files have one name."""
    stems = [file.stem for file in files]
    distinct = len(set(stems)) == len(stems)
    return [f"{stem}.jpg" if distinct else f"{number}-{stem}.jpg" for number, stem in enumerate(stems, start=1)]


def predict_image(
    image: Image.Image, image_id: int, model: FrozenDetector, head: MaskHead, categories: Sequence[Category]
) -> list[Result]:
    """Every detection of one image with its mask, best score first."""
    info = ImageInfo(image_id, image.height, image.width, "")
    return coco_results(image, image_id, predict_masks(image, model, head, info), categories)


@torch.inference_mode()
def predict_masks(
    image: Image.Image, model: FrozenDetector, head: MaskHead, info: ImageInfo, views: Sequence[str] = ()
) -> Masks:
    """What the head says about one image; views: see `main`."""

    def see(view: str) -> Features:
        return model.detect(model.transform(image, view_of(info, view))[None])

    if not views:
        return head.predict(see(WHOLE))[0]
    return predict_looks(head, looks(see(WHOLE), info, views, see, first=WHOLE))


def coco_results(image: Image.Image, image_id: int, masks: Masks, categories: Sequence[Category]) -> list[Result]:
    """The masks of one image as COCO results, best score first."""
    image_hw = (image.height, image.width)
    masks, counts = finished(masks, image_hw)
    boxes_xyxy = view_to_original(masks.boxes.cpu(), image_hw)
    boxes = box_results(image_id, boxes_xyxy, masks.scores, masks.labels, [c["id"] for c in categories])
    found = mask_results(boxes, masks.scores, counts, image_hw)
    return sorted(found, key=lambda result: -result["score"])


def overlay(
    image: Image.Image, results: Sequence[Result], categories: Sequence[Category], min_score: float, *, zoom: int = 1
) -> Image.Image:
    """The image, `zoom` times as large, with the masks of at least this score, each with its category and score."""
    names = {category["id"]: category["name"] for category in categories}
    shown = [result for result in results if result["score"] >= min_score]
    masks = [rle.decode(r["segmentation"]["counts"].encode(), (image.height, image.width)) for r in shown]
    return draw_masks(image, masks, [f"{names[r['category_id']]} {r['score']:.2f}" for r in shown], zoom=zoom)


def _spec(model: FrozenDetector) -> CacheSpec:
    """What a cache of this detector would say about its features."""
    return CacheSpec(model.levels, model.detections, model.query_dim, source=source_of(model))
