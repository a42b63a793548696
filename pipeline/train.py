"""Stage 2: cache -> trained head. Only the cache is opened: no image, annotation file or detector."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .data.sources import Cached
from .heads.registry import build_head
from .training.checkpoint import HEAD, claim_run, describe_run, save_tensors
from .training.recipe import load_recipe, override
from .training.together import train_together
from .training.trainer import Trainer


def main(
    *,
    cache: Path,
    head: str,
    run: Path,
    settings: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Path:
    """Train a head on a cache and leave it in the run directory, which is returned.

    head: a name of `configs/heads/` or a TOML. settings: fields of the head or its training that replace the TOML's.
    The same command again continues a run that was stopped, and ends where it would have ended without the stop.
    """
    source = Cached(cache, device)
    recipe = override(load_recipe(head), settings or {})
    description = describe_run(recipe, source.cache.spec)
    claim_run(run, description)
    if (run / HEAD).exists():
        print(f"{run} is trained to its end; evaluate it, or give another --run", file=sys.stderr)
        return run
    print(f"head {recipe.name}: {_changes(recipe.head)}\ntraining: {_changes(recipe.train)}", file=sys.stderr)
    model = build_head(recipe.family, recipe.head, description.widths)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        print(f"'{recipe.name}' has no parameters: there is nothing to train", file=sys.stderr)
        save_tensors(run / HEAD, model.state_dict())
        return run
    train_together(source, [Trainer(run, description, torch.device(device))])
    return run


def _changes(table: Any) -> str:
    """The settings that are not the defaults; config.json of the run holds them all."""
    default = type(table)()
    names = [field.name for field in dataclasses.fields(table)]
    changed = [f"{name}={getattr(table, name)}" for name in names if getattr(table, name) != getattr(default, name)]
    return ", ".join(changed) or "all defaults"
