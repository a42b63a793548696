"""Small H-DETR and DINO networks with weights that hide nothing, as configs and as files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.config import from_table
from pipeline.detectors.native import NativeConfig, NativeDetector, build, build_network

Module = TypeVar("Module", bound=nn.Module)

WIDTH = 64


def toy_table(kind: str = "hdetr", **changes: Any) -> dict[str, Any]:
    """The TOML table of a small detector on the narrow backbone."""
    table = {
        "kind": kind,
        "name": "toy",
        "summary": "a toy",
        "backbone": "narrow",
        "queries": 12,
        "classes": "contiguous",
        "columns": 5,
        "top_k": 20,
        "width": WIDTH,
        "encoder_layers": 4,
        "decoder_layers": 3,
        "heads": 4,
        "feed_forward": 96,
        "transform": {"resize": "shortest", "size": 96, "max_size": 160},
    }
    return {key: value for key, value in (table | changes).items() if value is not None}


def toy_config(kind: str = "hdetr", **changes: Any) -> NativeConfig:
    return from_table(NativeConfig, toy_table(kind, **changes), "toy.toml")


@dataclass(frozen=True)
class Toy:
    """A detector with random weights on disk, and what it was built from."""

    table: dict[str, Any]
    toml: Path
    weights: Path

    def build(self, **changes: Any) -> NativeDetector:
        return build({**self.table, **changes}, self.toml, self.weights)


def write_toy(folder: Path, kind: str = "hdetr", seed: int = 0, **changes: Any) -> Toy:
    """Weights in our own names beside the place of a TOML."""
    table, weights = toy_table(kind, **changes), folder / "toy.safetensors"
    network = perturbed(build_network(from_table(NativeConfig, table, "toy.toml")), seed)
    save_file(network.state_dict(), weights)
    return Toy(table, folder / "toy.toml", weights)


def perturbed(network: Module, seed: int = 0) -> Module:
    """Random weights far from any neutral start, so that no term is zero or one; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if "running_var" in name:
                value.copy_(0.5 + noise.abs())
            elif "sampling_offsets.bias" in name:
                value.add_(0.5 * noise)
            elif value.ndim == 1:
                # norms: around one; in a residual branch the last norm is small, or activations grow without bound
                neutral = 0.0 if name.endswith(("bias", "running_mean")) else 0.3 if ".bn3." in name else 1.0
                value.copy_(neutral + 0.2 * noise)
            else:
                fan_in = value[0].numel()
                value.copy_(noise * {True: 0.5, False: 1.0}["embed" in name] * fan_in**-0.5)
    return network.eval()
