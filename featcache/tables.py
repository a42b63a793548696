"""The tables of a cache: its images, and which files of the flat arrays must be there.

Zarr reads a file that is missing as zeros, and by default writes none for a chunk of zeros. Tables written by this
release have all of their files and say so; in older ones a file may be absent where all it holds could be zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featcache import truth
from featcache.spec import CacheSpec, ImageInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES = "images"
WHOLE = "every_chunk"
"""In our attribute of an array: true where every chunk was written, those of zeros too."""


def to_table(images: Sequence[ImageInfo]) -> dict[str, NDArray[Any]]:
    """Flat arrays by name; names are UTF-8 bytes, with the end of each."""
    import numpy as np

    names = [image.file_name.encode() for image in images]
    return {
        "id": np.array([image.id for image in images], "<i8"),
        "height": np.array([image.height for image in images], "<i4"),
        "width": np.array([image.width for image in images], "<i4"),
        "name_end": np.cumsum([len(name) for name in names], dtype="<i8"),
        "name_bytes": np.frombuffer(b"".join(names), np.uint8),
    }


def from_table(read: Callable[[str], NDArray[Any]]) -> list[ImageInfo]:
    """All images, from a function that gives each array of `to_table` by name; raises ValueError."""
    ids, heights, widths, ends = (read(name).tolist() for name in ("id", "height", "width", "name_end"))
    text = read("name_bytes").tobytes()
    if len(set(ids)) != len(ids):
        raise ValueError("images/id: several images have the same id")
    if not all(heights) or not all(widths):
        raise ValueError("images/height or width: an image has no size")
    truth.check_ends(ends, len(text), "images/name_end")
    return [
        ImageInfo(image_id, height, width, text[start:end].decode())
        for image_id, height, width, start, end in zip(ids, heights, widths, [0, *ends], ends, strict=False)
    ]


def table_paths(spec: CacheSpec) -> list[str]:
    """Every flat array of a cache."""
    truths = [truth.group_of(name) for name in (None, *spec.further_truth)]
    return [
        *(f"{IMAGES}/{name}" for name in ("id", "height", "width", "name_end", "name_bytes")),
        *(f"{group}/{name}" for group in truths for name in truth.ARRAYS),
    ]


def required_files(path: str, array: Mapping[str, Any], attribute: Mapping[str, Any], spec: CacheSpec) -> list[str]:
    """Files of a flat array that must be there, given its metadata and our attribute of it.

    None of an array that another program has laid out.
    """
    if array["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "."}}:
        return []
    rows, *row = array["chunk_grid"]["configuration"]["chunk_shape"]
    total = array["shape"][0]
    return [
        f"{path}/c.{chunk}" + ".0" * len(row)
        for chunk in range(math.ceil(total / rows))
        if attribute.get(WHOLE) or not _may_be_zeros(path, min(rows, total - chunk * rows), spec)
    ]


def _may_be_zeros(path: str, rows: int, spec: CacheSpec) -> bool:
    """Whether so many rows of a table can all be zeros."""
    table, _, name = path.rpartition("/")
    if name == "id":  # no two are the same
        return rows == 1
    if name == "category_id":
        further = table.removeprefix(truth.GROUP).rpartition("/")[2]
        known = spec.recipe.get(f"{further}_categories" if further else "categories")
        return not known or any(int(one["id"]) == 0 for one in known)
    return name in ("area", "iscrowd", "end")  # ends that do not fit the rows are found when they are read
