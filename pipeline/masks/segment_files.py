"""Segments of many images as files in COCO's panoptic format: a folder of PNG files and a JSON beside it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import ImageInfo

from ..data.panoptic import SegmentClass
from ..files import write_json
from .id_map import VOID, IdMap, write_png
from .panoptic import Segmentation


class SegmentFiles:
    """Grows image by image under a temporary name; `FOLDER/` and `FOLDER.json` are there once it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._part = folder, folder.with_name(f"{folder.name}.part")
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir(parents=True)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, info: ImageInfo, ids: IdMap, segments: Sequence[Mapping[str, Any]]) -> None:
        """One image: its id map, and of each segment `id`, `category_id` and what else there is to say."""
        name = f"{info.id:012d}.png"
        write_png(self._part / name, ids)
        self._images.append({"id": info.id, "height": info.height, "width": info.width, "file_name": info.file_name})
        self._annotations.append({"image_id": info.id, "file_name": name, "segments_info": [dict(s) for s in segments]})

    def keep(self, categories: Sequence[Mapping[str, Any]]) -> None:
        """Put folder and JSON where they belong, over those of before."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._part.rename(self.folder)
        content = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": [dict(c) for c in categories],
        }
        write_json(self.folder.with_suffix(".json"), content)

    def discard(self) -> None:
        """Leave nothing of it."""
        shutil.rmtree(self._part, ignore_errors=True)


def segments_info(found: Segmentation) -> list[dict[str, Any]]:
    """What the JSON says of each segment."""
    return [
        {
            "id": one.id,
            "category_id": one.segment_class.category_id,
            "isthing": int(one.segment_class.isthing),
            "area": int((found.ids == one.id).sum()),
            "score": round(one.score, 4),
        }
        for one in found.segments
    ]


def class_segments(labels: NDArray[np.integer], classes: Sequence[SegmentClass]) -> tuple[IdMap, list[dict[str, Any]]]:
    """A label for each pixel, "h w", as segments: everything of a class is one, whose id is the category's."""
    ids = np.array([VOID, *(one.category_id for one in classes)])[labels.astype(np.int64) + 1]
    return ids, [{"id": int(i), "category_id": int(i)} for i in np.unique(ids) if i != VOID]
