"""Names and shapes of weights: those of a model and those listed from the official models."""

import ast
from pathlib import Path

import pytest
from torch import nn

Shapes = dict[str, tuple[int, ...]]


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def official_shapes(shared: Path, checkpoint: str, prefix: str) -> Shapes:
    """Weights under `prefix` in the key list of an official checkpoint: lines of name, shape, dtype."""
    path = shared / "facts" / "keys" / f"{checkpoint}.txt"
    if not path.is_file():
        pytest.skip(f"no key list: {path} is absent")
    shapes: Shapes = {}
    for line in path.read_text().splitlines():
        if line.startswith(prefix):
            name, rest = line.removeprefix(prefix).split(" ", 1)
            shapes[name] = ast.literal_eval(rest.rsplit(" ", 1)[0])
    assert shapes
    return shapes
