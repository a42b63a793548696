"""Three small heads, how they are trained together, and what is compared of them."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline import ablate, train

TABLE = """
about = "Small heads"
detector = "hdetr-r50"
head = "unet"
[settings]
hidden = 16
roi = 8
warmup = 0
amp = "off"
log_every = 4
checkpoint_every = 5
rois_per_image = 4
[[rows]]
name = "U of 2, dropout"
settings = { box_layers = 2, dropout = 0.2 }
paper = { AP = 44.0, params = 1.51 }
[[rows]]
name = "paper's encoder"
head = "mask-frozen-detr"
settings = { dropout = 0.1, jitter = 0.2, ema = 0.9 }
paper = { AP = 45.2, gflops = 28.3 }
[[rows]]
name = "no image encoder"
settings = { image_encoder = "none" }
"""
BASELINE = """
[[rows]]
name = "baseline"
head = "base.toml"
"""
SETTINGS = {"batch_size": "2"}


def write(folder: Path, text: str) -> Path:
    (folder / "small.toml").write_text(text)
    return folder / "small.toml"


def run(toml: Path, cache: Path, out: Path, **options: Any) -> ablate.Outcome:
    return ablate.main(
        **{"ablation": str(toml), "cache": cache, "out": out, "settings": SETTINGS, "steps": "7", **options}
    )


def alone(outcome: ablate.Outcome, cache: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each trained head of an ablation, and the same head trained by `train` alone from a TOML of its own."""
    for member in outcome.members:
        recipe = json.loads((member.folder / "config.json").read_text())["recipe"]
        file = folder / f"{member.folder.name}.toml"
        lines = [f'family = "{recipe["family"]}"', f'about = "{recipe["about"]}"']
        for table in ("head", "train"):
            lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in recipe[table].items())]
        file.write_text("\n".join(lines))
        yield member.folder, train.main(cache=cache, head=str(file), run=folder / f"{member.folder.name}-alone")


def same_weights(one: Path, other: Path) -> bool:
    first, second = (torch.load(folder / "head.pt", weights_only=True) for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def read(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))
