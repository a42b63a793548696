"""HTML as text: elements that escape what they are given, tables, and pictures inside the page."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from .style import STYLE

Cells = Sequence[object]

PICTURE_WIDTH = 640
"""Pixels; larger pictures are shrunk."""


def page(title: str, *body: str) -> str:
    """A whole document; it loads nothing and runs nothing. body: HTML."""
    head = f"<meta charset='utf-8'>{tag('title', text(title))}<style>{STYLE}</style>"
    viewport = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    return f"<!doctype html>\n<html lang='en'><head>{head}{viewport}</head><body>{tag('main', *body)}</body></html>\n"


def text(words: object) -> str:
    """Plain words as HTML."""
    return html.escape(str(words), quote=True)


def tag(name: str, *content: str, **attributes: object) -> str:
    """An element. content: HTML; attributes: plain, `class_` for class, `_` for `-`; None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{''.join(content)}</{name}>"


def section(title: str, *content: str, about: str = "") -> str:
    """A part of the page under a heading, with a line that says what one sees."""
    words = tag("p", text(about), class_="about") if about else ""
    return tag("section", tag("h2", text(title)), words, *content)


def table(caption: str, head: Cells, rows: Sequence[Cells]) -> str:
    """A table whose first column names the rows; numbers and short words. It scrolls in itself where it is too wide."""
    columns = tag("tr", *(tag("th", text(cell), scope="col") for cell in head))
    body = [
        tag("tr", tag("th", text(row[0]), scope="row"), *(tag("td", text(cell)) for cell in row[1:])) for row in rows
    ]
    whole = tag("table", tag("caption", text(caption)), tag("thead", columns), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def number(value: float | None, digits: int = 1) -> str:
    """A number in words, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def picture(image: Image.Image, words: str) -> str:
    """The image inside the page, at most PICTURE_WIDTH wide. words: what it shows."""
    if image.width > PICTURE_WIDTH:
        height = round(image.height * PICTURE_WIDTH / image.width)
        image = image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=82, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{text(words)}" width="{image.width}" height="{image.height}">'
    )
