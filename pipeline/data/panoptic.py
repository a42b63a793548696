"""COCO panoptic annotations (a JSON and a folder of PNG files) -> the segments of each image, as a cache keeps them."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache import CacheSpec, GroundTruth, ImageInfo
from featcache.ahead import map_ahead
from featcache.progress import track

from ..errors import PipelineError
from ..masks import rle
from ..masks.id_map import VOID, read_png

PANOPTIC = "panoptic"
"""Name of this ground truth in a cache."""
CATEGORIES, SHA256 = "panoptic_categories", "panoptic_sha256"
"""Where the recipe of a cache has the categories, and its data set the hash of the JSON."""
THREADS = min(8, os.cpu_count() or 1)
ONE_RELEASE = "JSON and PNG files must be of one release"

Segment = Mapping[str, Any]


@dataclass(frozen=True)
class PanopticSet:
    """One panoptic annotation file, checked but for its PNG files."""

    file: Path
    folder: Path
    """Of the PNG files."""
    categories: tuple[dict[str, Any], ...]
    """{"id": int, "name": str, "isthing": 0 or 1} by increasing id; the position is the contiguous label."""
    sha256: str
    """Of the annotation file, which has the area of every segment."""
    annotations: Mapping[int, Mapping[str, Any]]
    """By image id."""

    def segments(self, images: Sequence[ImageInfo]) -> list[GroundTruth]:
        """Of each image, in the frame of the original image; none where it is not annotated. Reads the PNG files.

        Raises PipelineError naming the file where PNG and JSON do not agree.
        """
        return list(track(map_ahead(self._segments, images, THREADS), len(images), unit="panoptic maps"))

    def _segments(self, info: ImageInfo) -> GroundTruth:
        annotation = self.annotations.get(info.id)
        if annotation is None:
            return GroundTruth.none()
        file, image_hw = self.folder / annotation["file_name"], (info.height, info.width)
        try:
            ids = read_png(file)
        except OSError as error:
            raise PipelineError(f"panoptic map {file} cannot be read: {error}", "--panoptic-images DIR") from None
        if ids.shape != image_hw:
            raise PipelineError(f"panoptic map {file} has the size {ids.shape}, its image {image_hw}", ONE_RELEASE)
        segments: list[Segment] = annotation["segments_info"]
        strange = set(np.unique(ids).tolist()) - {int(one["id"]) for one in segments} - {VOID}
        if strange:
            raise PipelineError(
                f"panoptic map {file} has segment {min(strange)}, which {self.file} does not list", ONE_RELEASE
            )
        counts = [rle.encode(ids == int(one["id"])) for one in segments]
        areas = [rle.area(mask, image_hw) for mask in counts]
        for one, area in zip(segments, areas, strict=True):
            if area != one.get("area", area) or not area:
                raise PipelineError(
                    f"segment {one['id']} has {area:.0f} pixels in {file}, {one.get('area', 'some')} in {self.file}",
                    ONE_RELEASE,
                )
        return GroundTruth(
            ids=np.array([one["id"] for one in segments], dtype=np.int64),
            category_ids=np.array([one["category_id"] for one in segments], dtype=np.int64),
            boxes_xywh=np.array([rle.box_xywh(mask, image_hw) for mask in counts], dtype=np.float64).reshape(-1, 4),
            areas=np.array(areas, dtype=np.float64),
            iscrowd=np.array([one.get("iscrowd", 0) for one in segments], dtype=bool),
            rles=counts,
        )


def load_panoptic(file: Path, folder: Path | None, images: Sequence[ImageInfo]) -> PanopticSet:
    """Read the annotation file; the PNG files are in `folder`, or in the one beside it that has its name, as in COCO.

    What of `images` it does not list is counted on stderr. Raises PipelineError where that is all, or the file no such.
    """
    folder = folder or file.with_suffix("")
    try:
        text = file.read_bytes()
        raw: dict[str, Any] = json.loads(text)
        annotations = {int(one["image_id"]): one for one in raw["annotations"]}
        categories = tuple(
            {"id": int(one["id"]), "name": str(one["name"]), "isthing": int(one["isthing"])}
            for one in sorted(raw["categories"], key=lambda one: one["id"])
        )
        known = {one["id"] for one in categories}
        for one in raw["annotations"]:
            for segment in one["segments_info"]:
                if segment["category_id"] not in known:
                    raise PipelineError(
                        f"{file}: segment {segment['id']} of image {one['image_id']} has category "
                        f"{segment['category_id']}, which is not listed",
                        "add the category to `categories`, or drop the segment",
                    )
    except FileNotFoundError:
        raise PipelineError(f"no panoptic annotation file {file}", "--panoptic panoptic_val2017.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(
            f"{file} is no COCO panoptic JSON: {type(error).__name__} {error}",
            "it has annotations with segments_info, and categories with isthing",
        ) from None
    if not folder.is_dir():
        raise PipelineError(f"no folder {folder} of panoptic PNG files", "--panoptic-images DIR")
    missing = sum(info.id not in annotations for info in images)
    if missing == len(images):
        raise PipelineError(f"{file} lists none of the {missing} images", "give the panoptic JSON of the same split")
    if missing:
        print(
            f"note: {missing} of {len(images)} images have no panoptic annotation: for semantic and panoptic heads "
            "they teach and count nothing",
            file=sys.stderr,
        )
    return PanopticSet(file, folder, categories, hashlib.sha256(text).hexdigest(), annotations)


@dataclass(frozen=True)
class SegmentClass:
    """A class of segments; its place among them is its label."""

    category_id: int
    isthing: bool
    instance_label: int
    """The label of the same category among those of the detector, -1 where it has none."""


def segment_classes(spec: CacheSpec) -> tuple[SegmentClass, ...]:
    """Those that the ground truth of a cache has; none where it was extracted without `--panoptic`."""
    recipe: Any = spec.recipe
    labels = {category["id"]: label for label, category in enumerate(recipe["categories"])}
    return tuple(
        SegmentClass(one["id"], bool(one["isthing"]), labels.get(one["id"], -1) if one["isthing"] else -1)
        for one in recipe.get(CATEGORIES, [])
    )
