"""Columns of a detector's class scores -> COCO categories, by increasing id."""

from typing import Literal

from ..errors import PipelineError

COCO_UNUSED = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""Columns of a 91-class COCO model that stand for no category."""

Classes = Literal["contiguous", "coco-91"] | tuple[int, ...]
"""What the columns are: the categories by increasing id, COCO's raw ids 0..90, or a list of category ids (0 = none)."""


def category_columns(
    classes: Classes, columns: int, detector: str, tensor: str
) -> tuple[tuple[int, ...] | None, list[int]]:
    """Category ids by increasing id (None if only their order is known), and the score column of each.

    `columns` is how many the scores have; `detector` and `tensor` name them in the error raised if `classes` disagrees.
    """
    if classes == "contiguous":
        return None, list(range(columns))
    ids = column_ids(classes)
    if len(ids) != columns:
        raise PipelineError(f"{detector}: `classes` names {len(ids)} columns, {tensor} has {columns}")
    used = sorted((category_id, column) for column, category_id in enumerate(ids) if category_id > 0)
    return tuple(category_id for category_id, _ in used), [column for _, column in used]


def column_ids(classes: Literal["coco-91"] | tuple[int, ...]) -> tuple[int, ...]:
    """Category id of each column, 0 where it stands for none."""
    if classes == "coco-91":
        return tuple(0 if i in COCO_UNUSED else i for i in range(91))
    return classes
