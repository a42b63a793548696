"""Masks drawn on images for a person to read: one colour an object, outline, label with score; and sheets of them."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import distance_transform_edt

from .rle import Mask

Colour = tuple[int, int, int]
GAP = 6
TITLE = 30
"""Height of the line of titles."""
FILL = 0.45
"""How much of a mask's colour covers the image."""


def colour(number: int) -> Colour:
    """The colour of object 0, 1, 2 ...: hues a golden ratio apart, so that neighbours in the list differ most."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + number * 0.618034) % 1, 0.85 if number % 2 else 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def class_colour(category_id: int) -> Colour:
    """The colour of a class of stuff, the same in every image; paler than those of objects.

    Hues a golden ratio apart come near each other again after 13, 21 or 34 classes; such two differ in brightness.
    """
    saturation, value = (0.45, 0.6, 0.3, 0.5)[category_id % 4], (0.85, 0.6, 0.95, 0.5, 0.72)[category_id % 5]
    red, green, blue = colorsys.hsv_to_rgb((category_id * 0.618034) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_masks(
    image: Image.Image,
    masks: Sequence[Mask],
    captions: Sequence[str],
    *,
    colours: Sequence[Colour] | None = None,
    inside: bool = False,
    zoom: int = 1,
) -> Image.Image:
    """A copy of the image with every mask [h, w] filled, outlined and captioned; the first is drawn last, on top.

    colours: of each mask; those of objects if not given. inside: captions stand in the middle of the masks, not above
    them. zoom: enlarge this many times first, so that captions leave something of a small image to see.
    """
    colours = colours or [colour(number) for number in range(len(masks))]
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.BICUBIC)
    masks = [mask.repeat(zoom, 0).repeat(zoom, 1) for mask in masks]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    thickness = max(1, round(max(image.size) / 400))
    for number in reversed(range(len(masks))):
        mask, paint = masks[number], np.array(colours[number], dtype=np.float32)
        pixels = np.where(mask[:, :, None], (1 - FILL) * pixels + FILL * paint, pixels)
        pixels[outline(mask, thickness)] = paint
    drawn = Image.fromarray(pixels.astype(np.uint8))
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(max(11, round(max(image.size) / 48)))
    for number in reversed(range(len(masks))):
        if masks[number].any():
            _caption(pen, captions[number], masks[number], colours[number], drawn.size, font, inside)
    return drawn


def outline(mask: Mask, thickness: int = 1) -> Mask:
    """Pixels of the mask that are at most `thickness` pixels from its edge; the image border is an edge too."""
    inner = np.pad(mask, 1)
    for _ in range(thickness):
        core = inner[1:-1, 1:-1].copy()
        for shifted in (inner[:-2, 1:-1], inner[2:, 1:-1], inner[1:-1, :-2], inner[1:-1, 2:]):
            core &= shifted
        inner = np.pad(core, 1)
    return mask & ~inner[1:-1, 1:-1]


def sheet(
    images: Sequence[Image.Image],
    *,
    columns: int = 3,
    cell: tuple[int, int] = (400, 320),
    titles: Sequence[str] = (),
) -> Image.Image:
    """The images row by row on white, each as large as fits a cell of this width and height; titles go over columns."""
    width, height = cell[0] + GAP, cell[1] + GAP
    rows, header = -(-len(images) // columns), TITLE if titles else 0
    page = Image.new("RGB", (min(columns, len(images)) * width + GAP, rows * height + GAP + header), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(TITLE * 0.6)
    for number, title in enumerate(titles):
        pen.text((GAP + (number + 0.5) * width, header / 2 + 2), title, fill="black", font=font, anchor="mm")
    for number, image in enumerate(images):
        fitted = ImageOps.contain(image, cell)
        left, top = GAP + number % columns * width, header + GAP + number // columns * height
        page.paste(fitted, (left + (cell[0] - fitted.width) // 2, top + (cell[1] - fitted.height) // 2))
    return page


def _caption(
    pen: ImageDraw.ImageDraw,
    text: str,
    mask: Mask,
    paint: Colour,
    image_wh: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    inside: bool,
) -> None:
    """Text on the mask's colour: above the top left of the mask where there is room, or where the mask is widest."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    if inside:
        padded = np.pad(mask[::4, ::4], 1)  # coarse is good enough for a label
        depth: Any = distance_transform_edt(padded)
        middle_y, middle_x = (4 * (int(place) - 1) for place in np.unravel_index(np.argmax(depth), padded.shape))
        x, y = middle_x - width // 2, middle_y - height // 2
    else:
        mask_top, mask_left = (int(np.any(mask, axis=axis).argmax()) for axis in (1, 0))
        x, y = mask_left, mask_top - height if mask_top >= height else mask_top
    x, y = max(0, min(x, image_wh[0] - width)), max(0, min(y, image_wh[1] - height))
    ink = "black" if 0.3 * paint[0] + 0.59 * paint[1] + 0.11 * paint[2] > 110 else "white"
    pen.rectangle((x, y, x + width, y + height), fill=paint)
    pen.text((x + 3 - left, y + 2 - top), text, fill=ink, font=font)
