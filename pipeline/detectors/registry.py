"""Detector names -> detectors. A new family is one file and one line in KINDS; a new model of a family is one TOML."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import read_toml, shipped
from ..errors import PipelineError, nearest
from .base import FrozenDetector

Build = Callable[..., FrozenDetector]

KINDS = {"onnx": "pipeline.detectors.onnx"}
"""`kind` in the TOML -> module with `build(table, file, weights, device=, threads=)`; imported only when asked for."""


def build_detector(
    name_or_file: str, weights: Path, *, device: str = "cpu", threads: int | None = None
) -> FrozenDetector:
    """The detector of a shipped name or a TOML file with these weights, ready on `device` (`cpu`, `cuda`, `cuda:1`)."""
    table, file = detector_table(name_or_file)
    if not weights.is_file():
        raise PipelineError(f"no weights file {weights}", "pass the detector's weights: --weights FILE")
    build: Build = importlib.import_module(KINDS[table["kind"]]).build
    return build(table, file, weights, device=device, threads=threads)


def detector_table(name_or_file: str) -> tuple[Mapping[str, Any], Path]:
    """The TOML table behind a name or a file, and where it lies."""
    known = shipped("detectors")
    file = Path(name_or_file) if name_or_file.endswith(".toml") else known.get(name_or_file)
    if file is None:
        close = nearest(name_or_file, known)
        hint = (
            f"did you mean {close}?"
            if close
            else "`python -m pipeline detectors` lists them; a TOML file of your own works too"
        )
        raise PipelineError(f"unknown detector '{name_or_file}'", hint)
    table = read_toml(file)
    kind = table.get("kind")
    if kind not in KINDS:
        raise PipelineError(f"{file}: kind is {kind!r}", f"one of: {', '.join(KINDS)}")
    return table, file


def list_detectors() -> list[dict[str, str]]:
    """Name, kind and one-line summary of every shipped detector."""
    tables = {name: read_toml(file) for name, file in shipped("detectors").items()}
    return [{"name": name, "kind": table["kind"], "summary": table["summary"]} for name, table in tables.items()]
