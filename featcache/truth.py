"""Ground truth of all images as flat arrays with ends, and the k annotations of one image cut out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from featcache.spec import GroundTruth

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP = "ground_truth"
FURTHER = "further_truth"
"""Group of the ground truths that have names, each a group of the same arrays."""
ARRAYS = ("end", "id", "category_id", "box_xywh", "area", "iscrowd", "rle_end", "rle_bytes")


def group_of(name: str | None) -> str:
    """Where the ground truth of that name stands; None for the annotations."""
    return GROUP if name is None else f"{FURTHER}/{name}"


def to_table(truths: Sequence[GroundTruth]) -> dict[str, NDArray[Any]]:
    """Flat arrays by name; annotations of image i are rows end[i - 1] to end[i], RLE bytes of annotation j likewise."""
    import numpy as np

    rles = [rle for truth in truths for rle in truth.rles]

    def joined(field: str, dtype: str, *width: int) -> NDArray[Any]:
        return np.concatenate([np.asarray(getattr(truth, field)).reshape(-1, *width) for truth in truths]).astype(dtype)

    return {
        "end": np.cumsum([len(truth) for truth in truths], dtype="<i8"),
        "id": joined("ids", "<i8"),
        "category_id": joined("category_ids", "<i8"),
        "box_xywh": joined("boxes_xywh", "<f8", 4),
        "area": joined("areas", "<f8"),
        "iscrowd": joined("iscrowd", "|u1"),
        "rle_end": np.cumsum([len(rle) for rle in rles], dtype="<i8"),
        "rle_bytes": np.frombuffer(b"".join(rles), np.uint8),
    }


def from_table(read: Callable[[str], NDArray[Any]]) -> list[GroundTruth]:
    """The annotations of every image, from a function that gives each array of `to_table`; raises ValueError."""
    ends, rle_ends = [0, *read("end").tolist()], [0, *read("rle_end").tolist()]
    ids, categories, boxes, areas = read("id"), read("category_id"), read("box_xywh"), read("area")
    crowd, text = read("iscrowd").astype(bool), read("rle_bytes").tobytes()
    check_ends(ends, len(ids), "end")
    check_ends(rle_ends, len(text), "rle_end")
    rles = [text[start:end] for start, end in pairwise(rle_ends)]
    return [
        GroundTruth(ids[a:b], categories[a:b], boxes[a:b], areas[a:b], crowd[a:b], rles[a:b]) for a, b in pairwise(ends)
    ]


def check_ends(ends: Sequence[int], total: int, name: str) -> None:
    """Raise ValueError unless ends cut `total` things into parts, one behind the other."""
    if (ends[-1] if ends else 0) != total or any(end < start for start, end in pairwise(ends)):
        raise ValueError(f"{name} does not fit the {total} that it cuts into parts")
