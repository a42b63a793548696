"""Reading only the rows of C1 under the boxes: bytes, time of reading, time of a training step, full against local.

    python scripts/bench_rows.py --cache caches/train -- hidden=64    images of a cache, stored again with C1 in bands
    python scripts/bench_rows.py --boxes 1 2 7    800 x 1216 maps of H-DETR R50's widths, so many objects in each image

`whole` is C1 in one piece; in bands, those under the boxes that learn are read where the head can do with them. A step
is of --head with KEY=VALUE on one image; the weights after all steps must be the same to the last bit for one
`neck_path`, however C1 is stored. Milliseconds of processor time (other programs do not count), per image.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_maps import INPUT_HW, LEVELS, synthetic_maps
from torch import Tensor

from featcache import Cache, CacheSpec, CacheWriter, GroundTruth, ImageInfo
from pipeline.data.sources import Cached
from pipeline.masks.rle import encode
from pipeline.training.checkpoint import claim_run, describe_run
from pipeline.training.recipe import Recipe, load_recipe, override
from pipeline.training.rows import rows_under_boxes
from pipeline.training.together import train_together
from pipeline.training.trainer import Trainer

CATEGORIES = [{"id": i + 1, "name": str(i + 1)} for i in range(80)]


@dataclass
class Found:
    """Of one way to train: per image, bytes of the cache and milliseconds of reading alone and of a whole step."""

    read_bytes: float = 0.0
    read_ms: list[float] = field(default_factory=list[float])
    step_ms: float = 0.0


def objects(boxes: int, image: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Boxes xywh in 0-1, their sides between 3 and 90 % of the image's and most of them small, as COCO's are. "n 4" """
    rng = np.random.default_rng([boxes, image])
    sides = 0.03 * (0.9 / 0.03) ** rng.random((boxes, 2))
    return np.concatenate([(1 - sides) * rng.random((boxes, 2)), sides], 1)


def synthetic_cache(folder: Path, images: int, boxes: int, bands: int, shrink: int = 1, detections: int = 100) -> Path:
    """H-DETR R50's maps of pictures that show so many objects; the first detections are their boxes.

    shrink: the network input is 800 x 1216 divided by it.
    """
    h, w = (side // shrink for side in INPUT_HW)
    grids = {level.name: (-(-h // level.stride), -(-w // level.stride)) for level in LEVELS}
    c1, *encoder = (replace(level, max_hw=grids[level.name]) for level in LEVELS)
    rows = None if bands == 1 else -(-c1.max_hw[0] // bands)
    spec = CacheSpec(
        levels=(replace(c1, moments=True, band_rows=rows), *encoder),
        detections=detections,
        query_dim=256,
        source={"encoder": [level.name for level in encoder], "name": "synthetic"},
        recipe={"categories": CATEGORIES},
    )
    infos = [ImageInfo(i + 1, h, w, f"{i + 1}.jpg") for i in range(images)]
    truths: list[GroundTruth] = []
    for i in range(images):
        xywh = objects(boxes, i) * [w, h, w, h]
        masks = [np.zeros((h, w), np.uint8) for _ in xywh]
        for mask, (x, y, wide, high) in zip(masks, xywh.round().astype(int).tolist(), strict=True):
            mask[y : y + high, x : x + wide] = 1
        truths.append(
            GroundTruth(
                ids=np.arange(boxes) + boxes * i + 1,
                category_ids=np.ones(boxes, np.int64),
                boxes_xywh=xywh,
                areas=xywh[:, 2] * xywh[:, 3],
                iscrowd=np.zeros(boxes, bool),
                rles=[encode(mask) for mask in masks],
            )
        )
    generator = torch.Generator().manual_seed(0)
    with CacheWriter(folder, spec, infos, truths) as writer:
        for i, maps in enumerate(synthetic_maps(images)):
            xywh = torch.from_numpy(
                np.concatenate([objects(boxes, i), objects(detections - boxes, i + images)])
            ).float()
            writer.put(
                i,
                "orig",
                maps={name: one[:, : grids[name][0], : grids[name][1]] for name, one in maps.items()},
                queries=torch.randn(detections, 256, generator=generator),
                boxes=torch.cat([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]], 1),
                scores=torch.linspace(0.9, 0.01, detections),
                labels=torch.zeros(detections, dtype=torch.int64),
                input_hw=(h, w),
            )
    return folder


def stored_again(cache: Cache, folder: Path, images: int, bands: int) -> Path:
    """The first images of a cache in its first view, C1 in so many bands."""
    indices = np.flatnonzero(cache.done())[:images].tolist()
    levels = tuple(
        replace(level, moments=True, band_rows=None if bands == 1 else -(-level.max_hw[0] // bands))
        if level.name == "c1"
        else level
        for level in cache.spec.levels
    )
    spec = replace(cache.spec, levels=levels, views=cache.views[:1])
    truths = [cache.ground_truth(index) for index in indices]
    with CacheWriter(folder, spec, [cache.images[index] for index in indices], truths) as writer:
        for place, index in enumerate(indices):
            writer.put(place, cache.views[0], **cache[index].features())
    return folder


class _Timed(Trainer):
    """Notes the processor time at the end of each step."""

    used: Sequence[float] = ()

    def step(self, *args: Any, **options: Any) -> dict[str, float]:
        terms = super().step(*args, **options)
        self.used = [*self.used, time.process_time()]
        return terms


def train(source: Cached, recipe: Recipe, folder: Path) -> tuple[float, Mapping[str, Tensor]]:
    """Milliseconds of a step with the reading of its image, the first left out; and the weights after the last."""
    run = describe_run(recipe, source.spec)
    claim_run(folder, run)
    trainer = _Timed(folder, run, torch.device("cpu"))
    train_together(source, [trainer])
    milliseconds = (trainer.used[-1] - trainer.used[0]) / (len(trainer.used) - 1) * 1e3
    return milliseconds, torch.load(folder / "head.pt", weights_only=True)


def reading(source: Cached, recipe: Recipe, rounds: int) -> Found:
    """One pass of the loader over the images as the training would have them, several times."""
    trainer = Trainer(Path(tempfile.mkdtemp()), describe_run(recipe, source.spec), source.device)
    wanted, levels = rows_under_boxes([(trainer.model, trainer.config)], source), trainer.model.maps_read
    order: dict[str, Any] = {"views": source.spec.views, "indices": range(len(source)), "seed": 0}
    stream = source.stream(1, **order, levels=levels, wanted=wanted)
    found = Found()
    batches = iter(stream)
    for number in range(rounds + 1):
        before, started = source.cache.bytes_read, time.process_time()
        for _ in range(len(source)):
            next(batches)
        if number:  # the first pass opens files and buffers
            found.read_ms.append((time.process_time() - started) / len(source) * 1e3)
            found.read_bytes = (source.cache.bytes_read - before) / len(source)
    return found


def compare(caches: Mapping[int, Path], options: argparse.Namespace, folder: Path) -> None:
    """Print a row for each way; raise SystemExit where a row of C1 was missed."""
    base = {"batch_size": "1", "steps": str(options.steps), "log_every": "1000", "warmup": "0"}
    settings = dict(word.split("=", 1) for word in options.settings)
    weights: dict[str, Mapping[str, Tensor]] = {}
    ways = [("full", 1), *((path, bands) for path in ("local", "auto") for bands in caches)]
    for path, bands in ways:
        recipe = override(load_recipe(options.head), {**base, "neck_path": path, **settings})
        source = Cached(caches[bands])
        found = reading(source, recipe, options.rounds)
        found.step_ms, ended = train(source, recipe, folder / f"{path}{bands}")
        if any(not torch.equal(weights.setdefault(path, ended)[name], values) for name, values in ended.items()):
            raise SystemExit(f"{path}, {bands} bands: other weights than with the whole map")
        rows = "whole" if bands == 1 else f"{bands} bands"
        cells = f"{found.read_bytes / 1e6:.2f} | {statistics.median(found.read_ms):.1f} | {found.step_ms:.0f}"
        print(f"| {path} | {rows} | {cells} |", flush=True)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--boxes", type=int, nargs="+", default=(1, 2, 7), help="objects in each synthetic image")
    parser.add_argument("--bands", type=int, nargs="+", default=(8, 25))
    parser.add_argument("--head", default="mask-frozen-detr")
    parser.add_argument("--steps", type=int, default=3, help="the first is not counted")
    parser.add_argument("--rounds", type=int, default=3, help="passes of the loader")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="fields of the head or its training")
    options = parser.parse_args()
    for boxes in [0] if options.cache else options.boxes:
        print(f"\n{options.cache or f'{boxes} objects'}, {options.images} images\n")
        print("| neck_path | C1 | MB read | reading, ms | step and reading, ms |\n|---|---|---|---|---|")
        with tempfile.TemporaryDirectory(dir=Path("/dev/shm") if Path("/dev/shm").is_dir() else None) as name:
            caches: dict[int, Path] = {}
            for bands in (1, *options.bands):
                folder = Path(name) / str(bands)
                caches[bands] = (
                    stored_again(Cache(options.cache), folder, options.images, bands)
                    if options.cache
                    else synthetic_cache(folder, options.images, boxes, bands)
                )
            compare(caches, options, Path(name))


if __name__ == "__main__":
    main()
