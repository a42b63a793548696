"""COCO instance annotations -> image records, ground truth and categories, checked, in the shape a cache keeps them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featcache import GroundTruth, ImageInfo

from ..errors import PipelineError
from ..masks import rle
from .images import open_image
from .views import View, resolve

Category = dict[str, Any]  # {"id": int, "name": str}


@dataclass(frozen=True)
class CocoSet:
    """The images of one annotation file by increasing id, each with its ground truth in its own frame."""

    images: tuple[ImageInfo, ...]
    ground_truth: tuple[GroundTruth, ...]
    categories: tuple[Category, ...]
    """By increasing id; the position is the contiguous label."""
    sha256: str
    """Of the annotation file."""
    folder: Path | None
    """Where the image files are; None if nobody will open them."""

    def digest(self) -> str:
        """Of the ids of the images chosen, so that a cache of the first 100 is not taken for one of all."""
        return hashlib.sha256(json.dumps([info.id for info in self.images]).encode()).hexdigest()[:16]

    def path(self, index: int) -> Path:
        """The image file at this position."""
        assert self.folder is not None, "load_coco was called without an images folder"
        return self.folder / self.images[index].file_name

    def view(self, index: int, name: str) -> View:
        """The view of that name of the image at this position."""
        return view_of(self.images[index], name)


def view_of(info: ImageInfo, name: str) -> View:
    """The view of that name of an image; raises UsageError for an unknown name."""
    return resolve(name, info.id, (info.height, info.width))


def load_coco(annotations: Path, images: Path | None = None, limit: int | None = None) -> CocoSet:
    """Read `annotations`; `limit` keeps the images with the lowest ids. Image files are not opened or looked for."""
    raw, sha256 = _read(annotations)
    if images is not None and not images.is_dir():
        raise PipelineError(
            f"no image folder {images}", "pass the folder that holds the files named in the annotations: --images DIR"
        )
    categories = tuple(
        {"id": int(c["id"]), "name": str(c["name"])} for c in sorted(raw["categories"], key=lambda c: c["id"])
    )
    infos = sorted((_info(image) for image in raw["images"]), key=lambda info: info.id)
    if not infos:
        raise PipelineError(f"{annotations} lists no images", "pass COCO instances JSON: --annotations FILE")
    if len({info.id for info in infos}) < len(infos):
        raise PipelineError(f"{annotations} lists an image id twice", "give each of `images` an id of its own")
    by_image = _annotations_by_image(
        raw["annotations"], {info.id for info in infos}, {c["id"] for c in categories}, annotations
    )
    infos = infos[:limit]
    truth = tuple(_ground_truth(by_image[info.id], info, annotations) for info in infos)
    return CocoSet(tuple(infos), truth, categories, sha256, images)


def read_image(coco: CocoSet, index: int) -> Image.Image:
    """The image at this position, RGB; raises UnreadableImageError, also where its size is not the one annotated."""
    info = coco.images[index]
    return open_image(coco.path(index), (info.height, info.width))


def contiguous_labels(truth: GroundTruth, categories: Sequence[Category]) -> Tensor:
    """The label of each annotation: the position of its category among `categories`. int64 "k" """
    position = {int(category["id"]): label for label, category in enumerate(categories)}
    return torch.tensor([position[category_id] for category_id in truth.category_ids.tolist()], dtype=torch.int64)


def _read(annotations: Path) -> tuple[Mapping[str, Any], str]:
    try:
        text = annotations.read_bytes()
        raw = json.loads(text)
    except FileNotFoundError:
        raise PipelineError(
            f"no annotation file {annotations}", "pass COCO instances JSON: --annotations FILE"
        ) from None
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"{annotations} is not readable JSON: {error}", "pass COCO instances JSON: --annotations FILE"
        ) from None
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(raw, dict) or key not in raw]
    if missing:
        raise PipelineError(
            f"{annotations} has no '{missing[0]}' list", "COCO instances JSON has images, annotations and categories"
        )
    return raw, hashlib.sha256(text).hexdigest()


def _info(image: Mapping[str, Any]) -> ImageInfo:
    return ImageInfo(
        id=int(image["id"]), height=int(image["height"]), width=int(image["width"]), file_name=str(image["file_name"])
    )


def _annotations_by_image(
    annotations: list[Mapping[str, Any]], image_ids: set[int], category_ids: set[int], file: Path
) -> dict[int, list[Mapping[str, Any]]]:
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if annotation["image_id"] not in image_ids:
            raise PipelineError(
                f"{file}: annotation {annotation['id']} names image {annotation['image_id']}, which is not listed",
                "add the image to `images`, or drop the annotation",
            )
        if annotation["category_id"] not in category_ids:
            raise PipelineError(
                f"{file}: annotation {annotation['id']} names category {annotation['category_id']}, which is not "
                "listed",
                "add the category to `categories`, or drop the annotation",
            )
        by_image[annotation["image_id"]].append(annotation)
    return by_image


def _ground_truth(annotations: list[Mapping[str, Any]], info: ImageInfo, file: Path) -> GroundTruth:
    image_hw = (info.height, info.width)
    rles = [_counts(annotation, info, file) for annotation in annotations]
    areas = [a.get("area", rle.area(counts, image_hw)) for a, counts in zip(annotations, rles, strict=True)]
    boxes = [a.get("bbox", rle.box_xywh(counts, image_hw)) for a, counts in zip(annotations, rles, strict=True)]
    return GroundTruth(
        ids=np.array([a["id"] for a in annotations], dtype=np.int64),
        category_ids=np.array([a["category_id"] for a in annotations], dtype=np.int64),
        boxes_xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        areas=np.array(areas, dtype=np.float64),
        iscrowd=np.array([a.get("iscrowd", 0) for a in annotations], dtype=bool),
        rles=rles,
    )


def _counts(annotation: Mapping[str, Any], info: ImageInfo, file: Path) -> bytes:
    where = f"{file}: annotation {annotation['id']} of image {info.id}"
    if not annotation.get("segmentation"):
        raise PipelineError(
            f"{where} has no mask", "masks are learned from `segmentation`: drop annotations with a box only"
        )
    try:
        return rle.from_segmentation(annotation["segmentation"], (info.height, info.width))
    except ValueError as error:
        raise PipelineError(
            f"{where} has a mask that cannot be read: {error}", "repair its `segmentation`, or drop the annotation"
        ) from None
