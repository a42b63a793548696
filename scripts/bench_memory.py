"""Peak memory of a training step of the paper's default head at H-DETR R50's sizes: 800 x 1333, 100 boxes per image.

    python scripts/bench_memory.py --batch-sizes 1,2 --amp off,bf16

Every case is a process of its own that takes two steps, so that the second finds the optimiser's state. `kept` is the
account of `training/meter.py`: weights, gradients, optimiser and all that autograd keeps for the backward pass. `peak`
is the largest resident memory of the process, less what it had once everything was imported: it adds the batch (`maps`
tells how much that is) and the passing buffers of single operations. Both grow linearly with the batch, so that a line
through two sizes gives a third, `--project`. The goal is below 16 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache import GroundTruth, ImageInfo
from pipeline.data.sources import Batch
from pipeline.detectors.base import Features
from pipeline.heads.base import Widths
from pipeline.masks import rle
from pipeline.training.checkpoint import Run, write_run
from pipeline.training.recipe import load_recipe, override
from pipeline.training.trainer import Trainer

INPUT_HW, IMAGE_HW = (800, 1333), (480, 800)
STRIDES = {"c1": 4, "e8": 8, "e16": 16, "e32": 32, "e64": 64}
BOXES, WIDTH, CLASSES = 100, 256, 80


def main() -> None:
    """Print a row for each case, and the projection."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch-sizes", default="1,2")
    parser.add_argument("--amp", default="off,bf16")
    parser.add_argument("--project", type=int, default=8, help="batch size to extend the line to")
    parser.add_argument("--steps", type=int, default=2, help="with 1, without the optimiser's state")
    parser.add_argument("--head", default="mask-frozen-detr")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="fields of the head or its training")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.head, options.steps, dict(word.split("=", 1) for word in options.settings))))
        return
    for amp in options.amp.split(","):
        found = {int(size): in_a_process(options, int(size), amp) for size in options.batch_sizes.split(",")}
        for size, figures in found.items():
            print(f"batch {size}, amp {amp}: " + ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in figures.items()))
        if len(found) > 1 and options.project not in found:
            ends = min(found), max(found)
            line = {
                key: found[ends[0]][key]
                + (options.project - ends[0]) * (found[ends[1]][key] - found[ends[0]][key]) / (ends[1] - ends[0])
                for key in found[ends[0]]
            }
            words = ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in line.items())
            print(f"batch {options.project}, amp {amp}: {words} (a line through batches {ends[0]} and {ends[1]})")


def in_a_process(options: argparse.Namespace, size: int, amp: str) -> dict[str, float]:
    """The figures of one case."""
    words = [
        "--child",
        "yes",
        "--steps",
        str(options.steps),
        "--head",
        options.head,
        *options.settings,
        f"batch_size={size}",
        f"amp={amp}",
    ]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(head: str, steps: int, settings: dict[str, str]) -> dict[str, float]:
    """So many steps in this process."""
    recipe = override(
        load_recipe(head), {"rois_per_image": str(BOXES), **settings, "steps": str(steps), "log_every": "1"}
    )
    before = resident()
    batch = synthetic_batch(recipe.train.batch_size)
    maps = batch.features.maps
    widths = Widths(
        channels={name: one.shape[1] for name, one in maps.items()},
        strides=STRIDES,
        encoder=batch.features.encoder,
        query_dim=WIDTH,
        classes=CLASSES,
        encoder_layer=4,
    )
    categories: list[dict[str, Any]] = [{"id": i + 1, "name": str(i)} for i in range(CLASSES)]
    run = Run(recipe, widths, {"name": "synthetic"}, categories, "", {})
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder), run)
        trainer = Trainer(Path(folder), run, torch.device("cpu"))
        for _ in range(steps):
            assert trainer.step(batch)["loss"] > 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"kept": trainer.meter.step_bytes, "peak": peak, "maps": sum(one.nbytes for one in maps.values())}


def synthetic_batch(size: int) -> Batch:
    """Random maps; every box has its object, so that all of them learn."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    maps = {
        name: torch.randn(size, WIDTH, -(-INPUT_HW[0] // s), -(-INPUT_HW[1] // s), generator=generator).to(
            memory_format=torch.channels_last
        )
        for name, s in STRIDES.items()
    }
    truths = [boxes_as_objects(rng) for _ in range(size)]
    corners = torch.from_numpy(np.stack([truth.boxes_xywh for truth in truths]))
    unit = torch.tensor([IMAGE_HW[1], IMAGE_HW[0]] * 2)
    boxes = (torch.cat([corners[..., :2] + corners[..., 2:] / 2, corners[..., 2:]], dim=-1) / unit).float()
    features = Features(
        maps=maps,
        encoder=tuple(name for name in STRIDES if name != "c1"),
        strides=STRIDES,
        queries=torch.randn(size, BOXES, WIDTH, generator=generator),
        boxes=boxes,
        scores=torch.full((size, BOXES), 0.9),
        labels=torch.from_numpy(np.stack([truth.category_ids - 1 for truth in truths])),
        input_hw=torch.tensor([INPUT_HW] * size),
    )
    infos = [ImageInfo(i + 1, *IMAGE_HW, f"{i}.jpg") for i in range(size)]
    return Batch(features, [BOXES] * size, truths, infos, ["orig"] * size)


def boxes_as_objects(rng: np.random.Generator) -> GroundTruth:
    """Rectangles of COCO's sizes, from small to half the image."""
    side = np.exp(rng.uniform(np.log(12), np.log(240), (BOXES, 2))).astype(int)
    low = (rng.uniform(0, 1, (BOXES, 2)) * (np.array([IMAGE_HW[1], IMAGE_HW[0]]) - side)).astype(int)
    boxes = np.concatenate([low, side], axis=1).astype(np.float64)
    counts: list[bytes] = []
    for x, y, w, h in boxes.astype(int):
        mask = np.zeros(IMAGE_HW, dtype=bool)
        mask[y : y + h, x : x + w] = True
        counts.append(rle.encode(mask))
    labels = rng.integers(1, CLASSES + 1, BOXES)
    return GroundTruth(np.arange(BOXES), labels, boxes, side.prod(1).astype(float), np.zeros(BOXES, bool), counts)


def resident() -> int:
    """Bytes that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
