"""`show`: one image of a cache in words, and as a sheet: the picture with its boxes, every map in three colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from featcache.entry import Entry
from featcache.errors import CacheError, UsageError
from featcache.panels import DETECTION, TRUTH, WHITE, Box, Panel, page, panel_size
from featcache.reader import Cache
from featcache.spec import ImageInfo

UNFLIPPED = "orig"
"""The one view whose boxes lie on the picture as it is; those of other views are drawn on their maps only."""


def summary(cache: Cache, entry: Entry, min_score: float) -> dict[str, Any]:
    """What the terminal shows of one image: sizes, detections above a score, annotations, range of every map."""
    names, truth = category_names(cache), entry.ground_truth
    labels = [names[key] for key in sorted(names)]
    return {
        "image_id": entry.info.id,
        "index": entry.index,
        "view": entry.view,
        "file_name": entry.info.file_name,
        "image_hw": [entry.info.height, entry.info.width],
        "input_hw": list(entry.input_hw),
        "detections": [
            {"label": labels[label] if label < len(labels) else str(label), "score": round(score, 3), "box_cxcywh": box}
            for label, score, box in zip(
                *(_numpy(values).tolist() for values in (entry.labels, entry.scores, entry.boxes)), strict=True
            )
            if score >= min_score
        ],
        "annotations": [
            {"id": int(i), "category": names.get(int(c), str(c)), "box_xywh": box, "crowd": bool(crowd)}
            for i, c, box, crowd in zip(
                truth.ids, truth.category_ids, truth.boxes_xywh.tolist(), truth.iscrowd, strict=True
            )
        ],
        "maps": [
            {
                "level": name,
                "h": values.shape[1],
                "w": values.shape[2],
                "min": float(values.min()),
                "max": float(values.max()),
                "mean": float(values.mean()),
                "std": float(values.std()),
            }
            for name, values in entry.maps.items()
        ],
    }


def category_names(cache: Cache) -> dict[int, str]:
    """Names of the categories by id; empty for a cache that was not told."""
    return {int(c["id"]): str(c["name"]) for c in cache.spec.recipe.get("categories", [])}


def check_ending(out: Path) -> None:
    """Raise UsageError where no picture can be written under that name."""
    known = [ending for ending, form in Image.registered_extensions().items() if form in Image.SAVE]
    if out.suffix.lower() not in known:
        raise UsageError(f"no picture can be written as '{out}': unknown ending '{out.suffix}'", "such as 139.png")


def picture_of(cache: Cache, entry: Entry, folder: Path | None) -> Image.Image | None:
    """The picture of an entry, from a folder, by default from where it was; None if it is not there any more.

    Raises CacheError where it is not in the folder asked for, or is no picture.
    """
    known = folder or cache.spec.recipe.get("images_folder")
    path = Path(known) / entry.info.file_name if known else None
    if path is None or not path.is_file():
        if folder is not None:
            raise CacheError(f"{path} is not there", "--images names the folder of the pictures, or is left out")
        return None
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise CacheError(f"{path} does not read as a picture: {error}", "--images names another folder") from error


def sheet(entry: Entry, told: Mapping[str, Any], picture: Image.Image | None, min_score: float) -> Image.Image:
    """A page of panels: the picture, if there is one, with the ground truth and with the detections; then each map.

    told: the `summary` of the entry. picture: that of `picture_of`.
    """
    info = entry.info
    size = panel_size(*((info.height, info.width) if entry.view == UNFLIPPED else entry.input_hw))
    panels: list[Panel] = []
    if picture is not None:
        picture = picture.resize(panel_size(info.height, info.width), Image.Resampling.LANCZOS)
        truth = [(_caption_of(row), _corners(row["box_xywh"], info)) for row in told["annotations"]]
        panels.append(Panel(f"ground truth: {_count(len(truth), 'object')}", picture.copy(), TRUTH, truth))
        if entry.view == UNFLIPPED:
            words = f"{_count(len(told['detections']), 'detection')} of score {min_score:g} or more"
            panels.append(Panel(words, picture, DETECTION, _detections(told, named=True)))
    for name, values in entry.maps.items():
        c, h, w = values.shape
        drawn = Image.fromarray(principal_colours(values)).resize(size, Image.Resampling.NEAREST)
        panels.append(Panel(f"{name}: {h} x {w} cells, {c} channels", drawn, WHITE, _detections(told, named=False)))
    return page(
        f"image {info.id}, view {entry.view}: {info.file_name}, {info.height} x {info.width} pixels. "
        "Maps: three principal components as red, green, blue",
        panels,
    )


def principal_colours(values: Tensor) -> NDArray[np.uint8]:
    """Map "c h w" as "h w 3" uint8: its first three principal components, each from its 1st to its 99th percentile."""
    c, h, w = values.shape
    tokens = _numpy(values).reshape(c, -1).T.astype(np.float64)
    tokens -= tokens.mean(0)
    _, vectors = np.linalg.eigh(tokens.T @ tokens)
    components = tokens @ vectors[:, :-4:-1]
    low, high = np.percentile(components, [1, 99], axis=0)
    colours = np.zeros((h * w, 3))
    colours[:, : components.shape[1]] = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (colours * 255).round().astype(np.uint8).reshape(h, w, 3)


def _detections(told: Mapping[str, Any], *, named: bool) -> list[Box]:
    """Boxes xyxy in 0-1 of the view, with label and score."""
    boxes: list[Box] = []
    for row in told["detections"]:
        cx, cy, w, h = row["box_cxcywh"]
        words = f"{row['label']} {row['score']:.2f}" if named else ""
        boxes.append((words, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)))
    return boxes


def _caption_of(annotation: Mapping[str, Any]) -> str:
    return f"{annotation['category']}{' (crowd)' if annotation['crowd'] else ''}"


def _corners(box_xywh: Sequence[float], info: ImageInfo) -> tuple[float, float, float, float]:
    """A box in pixels of the picture as xyxy in 0-1."""
    x, y, w, h = box_xywh
    return x / info.width, y / info.height, (x + w) / info.width, (y + h) / info.height


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _numpy(values: Tensor) -> NDArray[Any]:
    return values.numpy()
