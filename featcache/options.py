"""Arguments and options that several commands share, and how their lists are read."""

from __future__ import annotations

from typing import Annotated

import typer

CachePath = Annotated[str, typer.Argument(metavar="CACHE", help="Cache directory or URL, such as s3://bucket/cache.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
View = Annotated[str | None, typer.Option(help="View, the first one by default.")]
ImageIds = Annotated[str | None, typer.Option(help="Only these image ids, comma-separated.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that read.")]


def id_list(text: str | None) -> list[int] | None:
    """Image ids of a comma-separated option."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a comma-separated list of image ids") from error


def name_list(text: str | None) -> list[str] | None:
    """Names of a comma-separated option."""
    return None if text is None else [part.strip() for part in text.split(",")]
