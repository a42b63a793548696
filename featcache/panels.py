"""Pictures with boxes and captions, laid out on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PANEL_HEIGHT = 400
PAGE_WIDTH = 1900
"""Panels go on in the next row beyond it."""
_GAP, _LINE, _TEXT, _SMALL = 12, 24, 15, 12
_INK = (20, 20, 20)

Colour = tuple[int, int, int]
TRUTH: Colour = (0, 150, 60)
DETECTION: Colour = (215, 60, 0)
WHITE: Colour = (255, 255, 255)

Box = tuple[str, tuple[float, float, float, float]]
"""Words ("" for none), and corners xyxy in 0-1 of the panel."""


@dataclass(frozen=True)
class Panel:
    """One picture with its caption, and boxes of one colour to be drawn on it."""

    caption: str
    picture: Image.Image
    colour: Colour
    boxes: Sequence[Box]


def panel_size(height: int, width: int) -> tuple[int, int]:
    """Width and height in pixels of the panel of a picture, which keeps its shape, to the width of a page."""
    scale = min(PANEL_HEIGHT / height, (PAGE_WIDTH - 2 * _GAP) / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def page(title: str, panels: Sequence[Panel]) -> Image.Image:
    """The panels in rows from left to right, under a title; never wider than PAGE_WIDTH unless the title is."""
    rows: list[list[Panel]] = [[]]
    for panel in panels:
        if rows[-1] and _row_width([*rows[-1], panel]) > PAGE_WIDTH:
            rows.append([])
        rows[-1].append(panel)
    heights = [_LINE + max((panel.picture.height for panel in row), default=0) for row in rows]
    font = ImageFont.load_default(_TEXT)
    width = max(*map(_row_width, rows), round(font.getlength(title)) + 2 * _GAP)
    whole = Image.new("RGB", (width, 2 * _GAP + _LINE + sum(heights) + _GAP * (len(rows) - 1)), WHITE)
    draw = ImageDraw.Draw(whole)
    draw.text((_GAP, _GAP), title, fill=_INK, font=font)
    y = _GAP + _LINE
    for row, height in zip(rows, heights, strict=True):
        x = _GAP
        for panel in row:
            draw.text((x, y + 3), _fitting(panel.caption, _panel_width(panel), font), fill=_INK, font=font)
            whole.paste(_with_boxes(panel), (x, y + _LINE))
            x += _panel_width(panel) + _GAP
        y += height + _GAP
    return whole


def _panel_width(panel: Panel) -> int:
    """A narrow picture has room for its caption beside it."""
    return max(panel.picture.width, 260)


def _row_width(row: Sequence[Panel]) -> int:
    return sum(_panel_width(panel) + _GAP for panel in row) + _GAP


def _fitting(words: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "..") > width:
        words = words[:-1]
    return words + ".."


def _with_boxes(panel: Panel) -> Image.Image:
    """Outlines first, largest below; then words, each on a ground of its own where no earlier ones stand."""
    picture, font = panel.picture, ImageFont.load_default(_SMALL)
    draw = ImageDraw.Draw(picture)
    boxes = sorted(panel.boxes, key=lambda box: -_area(box[1]))
    placed: list[tuple[float, float, float, float]] = []
    for _, corners in boxes:
        draw.rectangle(_pixels(corners, picture), outline=panel.colour, width=2 if panel.colour != WHITE else 1)
    for words, corners in reversed(boxes):
        if not words:
            continue
        x0, y0, _, _ = _pixels(corners, picture)
        width, height = font.getlength(words) + 4, _SMALL + 3
        x = max(0.0, min(x0, picture.width - width))
        free = (y for y in _heights(y0, height, picture.height) if not _covered((x, y, x + width, y + height), placed))
        y = next(free, None)
        if y is None:
            continue  # no room: the terminal lists them all
        placed.append((x, y, x + width, y + height))
        draw.rectangle(placed[-1], fill=panel.colour)
        draw.text((x + 2, y), words, fill=WHITE, font=font)
    return picture


def _heights(top: float, height: float, most: int) -> list[float]:
    """Where words of a box may stand: above its upper edge, then below it, line by line."""
    return [y for y in (top - height, *(top + line * height for line in range(4))) if 0 <= y <= most - height]


def _covered(place: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> bool:
    x0, y0, x1, y1 = place
    return any(x0 < right and left < x1 and y0 < bottom and top < y1 for left, top, right, bottom in others)


def _pixels(corners: Sequence[float], picture: Image.Image) -> tuple[float, float, float, float]:
    """Corners in pixels, inside the picture."""
    x0, x1 = sorted(min(max(x, 0.0), 1.0) * (picture.width - 1) for x in corners[::2])
    y0, y1 = sorted(min(max(y, 0.0), 1.0) * (picture.height - 1) for y in corners[1::2])
    return x0, y0, x1, y1


def _area(corners: Sequence[float]) -> float:
    x0, y0, x1, y1 = corners
    return abs((x1 - x0) * (y1 - y0))
