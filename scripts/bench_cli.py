"""How long a person waits for the command line: help, and `featcache info` and `ls` on a cache of COCO's size.

    python scripts/bench_cli.py --folder /dev/shm/bench-cli

The cache has as many images, files and rows as one of COCO train, and maps of a few cells. It is made once (minutes)
and kept in the folder; each command is a process of its own, timed from its start to its end.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from featcache import CacheSpec, CacheWriter, GroundTruth, ImageInfo, LevelSpec
from featcache.progress import Progress

COCO_TRAIN = 118_287
SHARD = 4
"""Images per map file: three levels then have about 89,000 files, as many as a cache may have."""
GOALS = {"featcache --help": 0.3, "python -m pipeline --help": 0.3, "featcache info": 0.5}
"""Seconds at most."""


def make_cache(path: Path, images: int) -> None:
    """Write the cache, or what is missing of it."""
    levels = (LevelSpec("c1", 4, 2, (4, 4)), LevelSpec("e16", 16, 2, (2, 2)), LevelSpec("e32", 32, 2, (1, 1)))
    spec = CacheSpec(
        levels=levels,
        detections=100,
        query_dim=4,
        source={"name": "synthetic"},
        recipe={"categories": [{"id": 1, "name": "thing"}], "command": "python scripts/bench_cli.py"},
    )
    infos = [ImageInfo(number, 480, 640, f"{number:012d}.jpg") for number in range(images)]
    truth = GroundTruth(
        np.arange(7), np.ones(7, np.int64), np.ones((7, 4)), np.ones(7), np.zeros(7, bool), [b"PPYo0"] * 7
    )
    maps = {level.name: torch.rand(level.channels, *level.max_hw) for level in levels}
    rows = {"queries": torch.rand(100, 4), "boxes": torch.rand(100, 4), "scores": torch.rand(100)}
    labels = torch.zeros(100, dtype=torch.int64)
    with CacheWriter(path, spec, infos, [truth] * images, shard=SHARD, queue=256) as writer:
        todo = writer.pending("orig")
        with Progress(len(todo), "images") as progress:
            for index in todo:
                writer.put(index, "orig", maps=maps, **rows, labels=labels, input_hw=(16, 16))
                progress.update(1)


def seconds(words: list[str], repeat: int) -> tuple[list[float], list[float]]:
    """Times of a command from start to end, and of the processor, which other work on the machine prolongs less."""
    waits: list[float] = []
    works: list[float] = []
    for _ in range(repeat):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        waits.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        works.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return waits, works


def main() -> None:
    """Print a table of times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the cache is made and kept")
    parser.add_argument("--images", type=int, default=COCO_TRAIN)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    cache = options.folder / f"synthetic-{options.images}"
    make_cache(cache, options.images)
    featcache, pipeline = str(Path(sys.executable).with_name("featcache")), [sys.executable, "-m", "pipeline"]
    commands = {
        "featcache --help": [featcache, "--help"],
        "featcache info --help": [featcache, "info", "--help"],
        "python -m pipeline --help": [*pipeline, "--help"],
        "featcache info": [featcache, "info", str(cache)],
        "featcache ls --limit 5": [featcache, "ls", str(cache), "--filter", "boxes>10", "--limit", "5"],
    }
    print(f"{'command':28} {'least':>7} {'median':>7} {'CPU':>7} {'goal':>6}   (seconds, {options.images} images)")
    for name, words in commands.items():
        waits, works = seconds(words, options.repeat)
        goal = f"{GOALS[name]:.1f}" if name in GOALS else "-"
        print(f"{name:28} {min(waits):7.2f} {statistics.median(waits):7.2f} {min(works):7.2f} {goal:>6}", flush=True)


if __name__ == "__main__":
    main()
