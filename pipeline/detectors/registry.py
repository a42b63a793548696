"""Detector names -> detectors. A new family is one file and one line in KINDS; a new model of a family is one TOML."""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import read_toml, shipped
from ..errors import PipelineError, UsageError, suggestion
from .base import FrozenDetector

Build = Callable[..., FrozenDetector]

KINDS = {
    "onnx": "pipeline.detectors.onnx",
    "hdetr": "pipeline.detectors.native",
    "dino": "pipeline.detectors.native",
}
"""`kind` in the TOML -> module with `build(table, file, weights, device=, threads=)`; imported only when asked for."""

HF = "hf:"
"""Opens the names of `transformers` models, which have no TOML and bring their weights: `hf:DIR`, `hf:OWNER/NAME`."""

CARD = ("weights", "weights_name", "parameters", "box_ap")
"""Keys that any detector TOML may have and no detector sees: its own weights file beside it, or the official one's
name; how many parameters the network has; its published box AP. See `listing.py`."""


def build_detector(
    name_or_file: str, weights: Path | None = None, *, device: str = "cpu", threads: int | None = None
) -> FrozenDetector:
    """The detector of a shipped name, a TOML file or `hf:...`, ready on `device` (`cpu`, `cuda`, `cuda:1`).

    Without `weights` it takes those it brings; raises PipelineError naming the official file if it brings none.
    """
    if name_or_file.startswith(HF):
        if weights is not None:
            raise UsageError(f"'{name_or_file}' brings its own weights", "leave out --weights")
        build_hf: Build = importlib.import_module("pipeline.detectors.hf").build
        return build_hf(name_or_file.removeprefix(HF), device=device, threads=threads)
    table, file = detector_table(name_or_file)
    found = find_weights(table, file, weights)
    build: Build = importlib.import_module(KINDS[table["kind"]]).build
    settings = {key: value for key, value in table.items() if key not in CARD}
    return build(settings, file, found, device=device, threads=threads)


def detector_table(name_or_file: str) -> tuple[Mapping[str, Any], Path]:
    """The TOML table behind a name or a file, and where it lies."""
    known = shipped("detectors")
    file = Path(name_or_file) if name_or_file.endswith(".toml") else known.get(name_or_file)
    if file is None:
        others = "`python -m pipeline detectors` lists them; a TOML file of your own and hf:DIR work too"
        raise UsageError(f"unknown detector '{name_or_file}'", suggestion(name_or_file, known, others))
    table = read_toml(file)
    kind = table.get("kind")
    if kind not in KINDS:
        raise PipelineError(f"{file}: kind is {kind!r}", f"one of: {', '.join(KINDS)}")
    return table, file


def find_weights(table: Mapping[str, Any], file: Path, given: Path | None) -> Path:
    """The weights file that is given, or the one the TOML in `file` names; raises PipelineError if it is not there."""
    name = table.get("name", file.stem)
    if given is not None:
        if not given.is_file():
            raise PipelineError(f"no weights file {given}", "pass the detector's weights: --weights FILE")
        return given
    if own := table.get("weights"):
        if not (file.parent / own).is_file():
            raise PipelineError(
                f"the weights of '{name}' are missing: no file {file.parent / own}", "pass them: --weights FILE"
            )
        return file.parent / own
    official = f": the official file is '{table['weights_name']}'" if table.get("weights_name") else ""
    raise PipelineError(f"'{name}' needs its weights{official}", "pass them: --weights FILE")


def absolute_name(name_or_file: str) -> str:
    """The same detector, named so that it is found from any folder."""
    if name_or_file.startswith(HF):
        folder = Path(name_or_file.removeprefix(HF)).expanduser()
        return f"{HF}{os.path.abspath(folder)}" if folder.is_dir() else name_or_file
    return name_or_file if name_or_file in shipped("detectors") else os.path.abspath(name_or_file)
