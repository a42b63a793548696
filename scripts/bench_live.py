"""A training step beside the live detector against one from the cache: the same head, images, steps, seed and machine.

    python scripts/bench_live.py --detector shapes-tiny
    python scripts/bench_live.py --detector hdetr-r50 --steps 3 --batch-size 1 --rounds 1

Without --weights a detector that brings none has random ones, which cost what trained ones do; without --images the
pictures are noise with seven rectangles, COCO's mean, 480 x 640, which hdetr-r50 sees at 800 x 1066. Rounds alternate
and each is a run of its own, whose first step is not counted; the ratio is that of the medians. Waiting is for images
(live) or for the disk (cached), in shares of a step. On a busy machine trust the ratio of CPU time. Goals: R50 at least
2, Swin-L and FocalNet-L at least 5, waiting at most 5 %.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline import extract
from pipeline.config import from_table
from pipeline.data.live import Live
from pipeline.data.sources import Batch, Cached, FeatureSource
from pipeline.detectors.base import LearningDetector
from pipeline.detectors.classes import column_ids
from pipeline.detectors.native import NativeConfig, build_network
from pipeline.detectors.registry import CARD, detector_table
from pipeline.train import LiveInputs, open_live
from pipeline.training.checkpoint import Run, claim_run, describe_run
from pipeline.training.recipe import Recipe, load_recipe, override
from pipeline.training.together import train_together
from pipeline.training.trainer import Trainer

OBJECTS, IMAGE_HW = 7, (480, 640)


@dataclass(frozen=True)
class Step:
    """What a step cost: seconds on the clock and of CPU time, and the share spent waiting."""

    wall: float
    cpu: float
    waiting: float


def main() -> None:
    """Print the step of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--detector", default="shapes-tiny")
    for name in ("weights", "images", "annotations"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--head", default="mask-frozen-detr")
    parser.add_argument("--steps", type=int, default=6, help="of each round; the first is not counted")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=4, help="to draw")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codec", default="uint8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--finetune", choices=("transformer", "all"), help="a live step in which the detector learns too"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="fields of the head or its training")
    options = parser.parse_args()
    settings = dict(word.split("=", 1) for word in options.settings)
    settings |= {"steps": str(options.steps), "batch_size": str(options.batch_size), "log_every": "1", "warmup": "0"}
    recipe = override(load_recipe(options.head), settings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations = options.annotations or draw(folder, options.pictures, category_ids(options.detector))
        weights = options.weights or random_weights(options.detector, folder)
        inputs = LiveInputs(options.detector, weights, options.images or folder / "images", annotations)
        cache = extract.main(
            **vars(inputs), cache=folder / "cache", codec=options.codec, batch_size=1, device=options.device
        )
        ways: dict[str, tuple[Callable[[], FeatureSource], Recipe]] = {
            "live": (lambda: open_live(inputs, recipe, options.device), recipe),
            "cached": (lambda: Cached(cache, options.device), recipe),
        }
        if options.finetune:
            learning = override(recipe, {"finetune": options.finetune, "detection_weight": "1"})
            ways[f"finetune={options.finetune}"] = (lambda: open_live(inputs, learning, options.device), learning)
        found: dict[str, list[Step]] = {kind: [] for kind in ways}
        for number in range(options.rounds):
            for kind, (opened, own) in ways.items():
                found[kind].append(train(opened(), own, folder / f"{kind}{number}", options.device))
    for kind, steps in found.items():
        wall, cpu, waiting = (
            statistics.median(getattr(one, key) for one in steps) for key in ("wall", "cpu", "waiting")
        )
        print(f"{options.detector} {kind:20} {wall:8.3f} s a step, CPU {cpu:.3f} s, waiting {waiting:.1%}")
    for kind in ways.keys() - {"cached"}:
        wall, cpu = (
            statistics.median(getattr(one, key) for one in found[kind])
            / statistics.median(getattr(one, key) for one in found["cached"])
            for key in ("wall", "cpu")
        )
        print(f"{options.detector} {kind}, ratio to cached {wall:.2f} (of CPU time {cpu:.2f})")


class _Timed(Trainer):
    """Notes the CPU time at the end of each step."""

    def __init__(self, folder: Path, run: Run, device: torch.device, learner: LearningDetector | None) -> None:
        super().__init__(folder, run, device, learner)
        self.used: list[float] = []

    def step(self, batch: Batch, waited: float = 0.0) -> dict[str, float]:
        terms = super().step(batch, waited)
        self.used.append(time.process_time())
        return terms


def train(source: FeatureSource, recipe: Recipe, out: Path, device: str) -> Step:
    """One run; the median of its steps but the first."""
    run = describe_run(recipe, source.spec)
    claim_run(out, run)
    trainer = _Timed(out, run, torch.device(device), source.learner if isinstance(source, Live) else None)
    train_together(source, [trainer])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    wall = statistics.median(recipe.train.batch_size / line["images_per_second"] for line in lines)
    return Step(
        wall, (trainer.used[-1] - trainer.used[0]) / len(lines), statistics.median(line["data_wait"] for line in lines)
    )


def random_weights(detector: str, folder: Path) -> Path | None:
    """A weights file for a detector that brings none; None for one that does."""
    table, file = detector_table(detector)
    if table.get("weights"):
        return None
    torch.manual_seed(0)
    save_file(build_network(native_config(table, file)).state_dict(), folder / "random.safetensors")
    return folder / "random.safetensors"


def category_ids(detector: str) -> list[int]:
    """COCO category ids that a native detector knows."""
    config = native_config(*detector_table(detector))
    ids = range(1, config.columns + 1) if config.classes == "contiguous" else column_ids(config.classes)
    return sorted(category_id for category_id in ids if category_id)


def native_config(table: Mapping[str, Any], file: Path) -> NativeConfig:
    """The settings of a native detector's TOML."""
    return from_table(NativeConfig, {key: value for key, value in table.items() if key not in CARD}, str(file))


def draw(folder: Path, pictures: int, categories: list[int]) -> Path:
    """Noise with rectangles in it, and their annotations; returns those."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, pictures + 1):
        pixels = rng.integers(0, 256, (*IMAGE_HW, 3), dtype=np.uint8)
        images.append({"id": number, "height": IMAGE_HW[0], "width": IMAGE_HW[1], "file_name": f"{number}.jpg"})
        for _ in range(OBJECTS):
            w, h = rng.integers(30, 250, 2).tolist()
            x, y = int(rng.integers(IMAGE_HW[1] - w)), int(rng.integers(IMAGE_HW[0] - h))
            pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": categories[0],
                    "iscrowd": 0,
                    "area": w * h,
                }
                | {"bbox": [x, y, w, h], "segmentation": [polygon]}
            )
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
    file = folder / "annotations.json"
    known = [{"id": category_id, "name": str(category_id)} for category_id in categories]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": known}))
    return file


if __name__ == "__main__":
    main()
