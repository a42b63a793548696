"""Names and shapes of weights: those of a model and those listed from the official models."""

import ast
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

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


CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Largest difference from an oracle, as a part of the largest value: rounding and nothing else."""


def assert_equal_maps(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """The same maps, and values large enough for that to mean something."""
    for a, b in zip(ours, theirs, strict=True):
        scale = float(b.abs().max())
        assert scale > 1
        torch.testing.assert_close(a, b, rtol=0, atol=CLOSE[a.dtype] * scale)


Module = TypeVar("Module", bound=nn.Module)


def perturb(model: Module) -> Module:
    """Weights that hide nothing: norms, scales and biases far from their neutral start."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:  # logits of attention spread over a few units
                nn.init.normal_(value, 0, 1 if "bias_table" in name else 1.2 * value[0].numel() ** -0.5)
            else:
                offset = 0 if name.endswith("bias") else 0.5 if "gamma" in name else 1
                nn.init.normal_(value, offset, 0.3)
    return model
