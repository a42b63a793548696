"""Options that several commands share, and how KEY=VALUE words and lists are read."""

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


def pairs(settings: list[str]) -> dict[str, str]:
    """`key=value` words as a table."""
    for word in settings:
        if "=" not in word:
            raise UsageError(f"'{word}' is not KEY=VALUE", "such as lr=3e-4")
    return {key: value for key, _, value in (word.partition("=") for word in settings)}


def seed(word: str) -> int:
    """One number of `--seeds`."""
    if not word.strip().isdigit():
        raise UsageError(f"--seeds has '{word}', which is no number", "such as --seeds 0,1,2")
    return int(word)
