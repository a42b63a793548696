"""N heads in one pass over the cache against N runs of `train`: the same heads, steps, seed and machine.

    python scripts/bench_ablate.py --heads 8 --steps 20

Without --cache, the maps are synthetic: an 800 x 1216 image at five levels of 256 channels. The heads are light,
so that reading and decoding dominate, as they do on a GPU: the goal of at most 0.6 is for that case. `--head` names any
other. Rounds alternate, the ratio is that of the medians. On a busy machine trust the ratio of CPU time.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench_maps import INPUT_HW, LEVELS, synthetic_maps

from featcache import CacheSpec, CacheWriter, GroundTruth, ImageInfo
from pipeline.data.sources import Cached
from pipeline.masks import rle
from pipeline.training.checkpoint import HEAD, claim_run, describe_run
from pipeline.training.recipe import Recipe, load_recipe, override
from pipeline.training.together import train_together
from pipeline.training.trainer import Trainer

LIGHT = {"image_encoder": "none", "c1": "false", "neck": "false", "hidden": "16", "box_layers": "2", "roi": "16"}
"""Changes of the head `unet` that leave little beside the reading."""

Seconds = tuple[float, float]
"""On the clock, and of CPU time."""


def main() -> None:
    """Print the seconds of both, the share of waiting for data, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, help="in place of synthetic maps")
    parser.add_argument("--head", default="", help="a name or TOML in place of the light head")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--images", type=int, default=8, help="of the synthetic cache")
    parser.add_argument("--objects", type=int, default=7, help="in each of them; COCO has 7")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = options.cache or synthetic_cache(folder / "cache", options.images, options.objects)
        recipes = heads(options.head, options.heads, options.steps, options.batch_size)
        separate: list[Seconds] = []
        together: list[Seconds] = []
        for number in range(options.rounds + 1):
            out = folder / f"round{number}"
            runs = [train(cache, [recipe], out / "separate", options.device) for recipe in recipes]
            one = train(cache, recipes, out / "together", options.device)
            if number:  # the first round warms the page cache
                separate.append((sum(wall for wall, _ in runs), sum(cpu for _, cpu in runs)))
                together.append(one)
        for title, seconds, kind in (
            (f"{options.heads} runs of train", separate, "separate"),
            (f"one pass, {options.heads} heads", together, "together"),
        ):
            waits = [line["data_wait"] for line in log(out / kind)]
            own = [1e3 * line["step_seconds"] for line in log(out / kind)]
            walls = [wall for wall, _ in seconds]
            print(
                f"{title:22} {statistics.median(walls):7.2f} s ({min(walls):.2f} to {max(walls):.2f}), "
                f"CPU {statistics.median(cpu for _, cpu in seconds):.2f} s, "
                f"a head's own step {statistics.median(own):.0f} ms, waiting for data {statistics.median(waits):.0%}"
            )
        same = all(equal(out / "separate" / recipe.name, out / "together" / recipe.name) for recipe in recipes)
        print(f"weights equal: {same}")
        wall, cpu = (
            statistics.median(one[kind] for one in together) / statistics.median(one[kind] for one in separate)
            for kind in (0, 1)
        )
        print(f"ratio {wall:.3f} (of CPU time {cpu:.3f}), goal at most 0.6")


def heads(name: str, count: int, steps: int, batch_size: int) -> list[Recipe]:
    """Heads that differ in their learning rate only, so that each costs the same."""
    base = override(load_recipe(name or "unet"), {} if name else LIGHT)
    base = override(base, {"steps": str(steps), "warmup": "0", "batch_size": str(batch_size), "log_every": str(steps)})
    return [replace(override(base, {"lr": f"{1e-3 / (i + 1):.6f}"}), name=f"head{i}") for i in range(count)]


def train(cache: Path, recipes: list[Recipe], out: Path, device: str) -> Seconds:
    """Seconds to train these heads in one pass, from opening the cache to the last head on disk."""
    started, used = time.perf_counter(), time.process_time()
    source = Cached(cache, device)
    trainers: list[Trainer] = []
    for recipe in recipes:
        run = describe_run(recipe, source.cache.spec)
        claim_run(out / recipe.name, run)
        trainers.append(Trainer(out / recipe.name, run, torch.device(device)))
    train_together(source, trainers)
    return time.perf_counter() - started, time.process_time() - used


def synthetic_cache(path: Path, images: int, objects: int) -> Path:
    """Correlated maps, and ellipses as objects whose boxes are the detections beside some noise."""
    n = 100
    spec = CacheSpec(
        levels=LEVELS,
        detections=n,
        query_dim=256,
        source={"name": "synthetic", "encoder": [level.name for level in LEVELS[1:]]},
        recipe={"categories": [{"id": 1, "name": "ellipse"}]},
    )
    rng, hw = np.random.default_rng(0), (480, 640)
    infos = [ImageInfo(i + 1, *hw, f"{i}.jpg") for i in range(images)]
    truths: list[GroundTruth] = []
    for number in range(images):
        y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
        discs = [ellipse(x, y, rng) for _ in range(objects)]
        counts = [rle.encode(disc) for disc in discs]
        boxes = np.array([rle.box_xywh(c, hw) for c in counts])
        areas = np.array([float(disc.sum()) for disc in discs])
        ids = np.arange(objects) + number * objects + 1
        truths.append(GroundTruth(ids, np.ones(objects, np.int64), boxes, areas, np.zeros(objects, bool), counts))
    with CacheWriter(path, spec, infos, truths) as writer:
        for index, maps in enumerate(synthetic_maps(images)):
            xywh = torch.from_numpy(truths[index].boxes_xywh / np.array([hw[1], hw[0], hw[1], hw[0]]))
            found = torch.cat([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]], dim=1).float()
            writer.put(
                index,
                "orig",
                maps=maps,
                queries=torch.randn(n, 256),
                boxes=torch.cat([found, torch.rand(n - objects, 4) * 0.3 + 0.1]),
                scores=torch.linspace(0.9, 0.05, n),
                labels=torch.zeros(n, dtype=torch.int64),
                input_hw=INPUT_HW,
            )
    return path


def ellipse(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One object somewhere, from small to a third of the image."""
    centre, radii = rng.uniform((100, 80), (540, 400)), rng.uniform(12, 110, 2)
    return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1


def log(out: Path) -> list[dict[str, float]]:
    """The last line of each head's metrics."""
    return [json.loads(file.read_text().splitlines()[-1]) for file in sorted(out.glob("*/metrics.jsonl"))]


def equal(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights."""
    first, second = (torch.load(run / HEAD, weights_only=True) for run in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


if __name__ == "__main__":
    main()
