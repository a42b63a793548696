"""`show`: one image of a cache as a sheet: the picture with its boxes, and every map as its three main components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from featcache.reader import Cache, Entry

PANEL_HEIGHT = 360
_CAPTION = 16
_TRUTH, _DETECTION = (0, 200, 0), (230, 60, 0)
UNFLIPPED = "orig"
"""The one view whose boxes lie on the picture as it is; those of other views are drawn on their maps only."""


def summary(cache: Cache, entry: Entry, min_score: float) -> dict[str, Any]:
    """What the terminal shows of one image: sizes, detections above a score, annotations, range of every map."""
    names = {int(c["id"]): str(c["name"]) for c in cache.spec.recipe.get("categories", [])}
    labels = [names[key] for key in sorted(names)]
    truth = entry.ground_truth
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


def sheet(entry: Entry, pictures: Path | None, min_score: float) -> Image.Image:
    """Panels side by side: the picture if its folder is known, then each map."""
    panels: list[tuple[str, Image.Image]] = []
    path = pictures / entry.info.file_name if pictures else None
    if path is not None and path.is_file():
        panels.append((f"{entry.info.file_name}: truth green, detections red", _picture(entry, path, min_score)))
    for name, values in entry.maps.items():
        panel = Image.fromarray(principal_colours(values)).resize(
            _panel_size(*entry.input_hw), Image.Resampling.NEAREST
        )
        _draw(panel, _detections(entry, min_score), _DETECTION)
        panels.append((f"{name}  {values.shape[1]} x {values.shape[2]} x {values.shape[0]}", panel))
    return _row(panels)


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


def _picture(entry: Entry, path: Path, min_score: float) -> Image.Image:
    with Image.open(path) as file:
        picture = file.convert("RGB").resize(_panel_size(entry.info.height, entry.info.width))
    truth = entry.ground_truth.boxes_xywh
    corners = np.concatenate([truth[:, :2], truth[:, :2] + truth[:, 2:]], 1)
    _draw(picture, corners / ([entry.info.width, entry.info.height] * 2), _TRUTH)
    if entry.view == UNFLIPPED:
        _draw(picture, _detections(entry, min_score), _DETECTION)
    return picture


def _detections(entry: Entry, min_score: float) -> NDArray[Any]:
    """Boxes above a score, xyxy in 0-1 of the view."""
    boxes = _numpy(entry.boxes)[_numpy(entry.scores) >= min_score]
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def _draw(panel: Image.Image, boxes_xyxy: NDArray[Any], colour: tuple[int, int, int]) -> None:
    draw = ImageDraw.Draw(panel)
    for x0, y0, x1, y1 in (boxes_xyxy * ([panel.width, panel.height] * 2)).tolist():
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=2)


def _panel_size(height: int, width: int) -> tuple[int, int]:
    return max(1, round(width * PANEL_HEIGHT / height)), PANEL_HEIGHT


def _row(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    total = Image.new("RGB", (sum(panel.width for _, panel in panels), PANEL_HEIGHT + _CAPTION), "white")
    draw, x = ImageDraw.Draw(total), 0
    for caption, panel in panels:
        draw.text((x + 2, 2), caption, fill="black")
        total.paste(panel, (x, _CAPTION))
        x += panel.width
    return total


def _numpy(values: Tensor) -> NDArray[Any]:
    return values.numpy()
