"""Options that several commands share, and how KEY=VALUE words and lists are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from .errors import UsageError


def check_device(name: str) -> str:
    """The name, if it is that of a device of this machine; raises PipelineError. torch is imported for a GPU only."""
    if name != "cpu":
        from .detectors.device import torch_device

        torch_device(name)
    return name


Detector = Annotated[
    str,
    typer.Option(
        help="A name from `detectors`, a TOML file, or hf: and a folder or hub id.", metavar="NAME|FILE|hf:DIR"
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="The detector's weights; not for one that brings its own.", metavar="FILE")
]
CacheDir = Annotated[Path, typer.Option(help="The feature cache.", metavar="DIR")]
RunDir = Annotated[Path, typer.Option(help="The run: settings, checkpoint, metrics of one head.", metavar="DIR")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", callback=check_device)]


def names(words: str) -> list[str]:
    """Comma-separated words; none of an empty text."""
    return [word.strip() for word in words.split(",")] if words else []


def pairs(settings: list[str] | None, **options: object) -> dict[str, str]:
    """`key=value` words as a table, with the options that stand for some of them; those that are None say nothing.

    Raises UsageError for a key that is given twice.
    """
    table: dict[str, str] = {}
    for word in settings or []:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"'{word}' is not KEY=VALUE", "such as lr=3e-4")
        if key in table:
            raise UsageError(f"{key} is given twice: {table[key]} and {value}", "leave one of them out")
        table[key] = value
    for key, value in options.items():
        if value is not None and key in table:
            option = f"--{key.replace('_', '-')} {value}"
            raise UsageError(f"{key} is given twice: {option} and {key}={table[key]}", "leave one of them out")
        if value is not None:
            table[key] = str(value)
    return table


def check_once(table: Mapping[str, str], *, steps: str | None, seeds: str | None) -> None:
    """Raise UsageError for a setting that an option of `ablate` gives in other words too."""
    for key, option, value in (("steps", "--steps", steps), ("seed", "--seeds", seeds)):
        if value is not None and key in table:
            raise UsageError(f"{key} is given twice: {option} {value} and {key}={table[key]}", "leave one of them out")


def seed(word: str) -> int:
    """One number of `--seeds`."""
    if not word.strip().isdigit():
        raise UsageError(f"--seeds has '{word}', which is no number", "such as --seeds 0,1,2")
    return int(word)
