"""The segments of an image drawn on it: each thing in a colour of its own, each class of stuff in that of the class."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..data.coco import Category
from ..data.views import resolve
from .id_map import IdMap
from .panoptic import panoptic
from .query_masks import QueryMasks
from .segment_files import class_segments, segments_info
from .semantic import semantic
from .viz import class_colour, colour, draw_masks


def cut_up(queries: QueryMasks, image_hw: tuple[int, int]) -> tuple[IdMap, list[dict[str, Any]]]:
    """The id map of an image and what is to say of each segment, for the task of the head."""
    view = resolve("orig", 0, image_hw)
    if queries.task == "semantic":
        return class_segments(semantic(queries, view), queries.classes)
    found = panoptic(queries, view)
    return found.ids, segments_info(found)


def segment_overlay(
    image: Image.Image,
    ids: IdMap,
    segments: Sequence[dict[str, Any]],
    categories: Sequence[Category],
    *,
    zoom: int = 1,
) -> Image.Image:
    """The image, `zoom` times as large, with its segments; each with the name of its category, and score if it has one.

    A segment without `isthing` is of a whole class, and is drawn as stuff is.
    """
    names = {category["id"]: category["name"] for category in categories}
    ordered = sorted(segments, key=lambda one: not one.get("isthing", 0))  # things on top
    captions = [_caption(names[one["category_id"]], one) for one in ordered]
    colours = [
        colour(number) if one.get("isthing", 0) else class_colour(one["category_id"])
        for number, one in enumerate(ordered)
    ]
    masks = [ids == one["id"] for one in ordered]
    return draw_masks(image, masks, captions, colours=colours, inside=True, zoom=zoom)


def _caption(name: str, segment: dict[str, Any]) -> str:
    return f"{name} {segment['score']:.2f}" if "score" in segment else name
