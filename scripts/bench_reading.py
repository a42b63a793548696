"""What the loader reads for a head that looks at some of the maps of a cache, beside all of them.

    python scripts/bench_reading.py --cache caches/val    the heads below on the first images of a cache
    python scripts/bench_reading.py                       800 x 1216 maps of three encoder layers, as for Table 15

A head is a name with KEY=VALUE words. `all` is the loader without the head's say; both read in turns in one run. MB of
the cache's files and milliseconds of processor time (other programs do not count) per image; images/s by the clock, one
image in a batch, nothing else at work in this process. Medians of rounds over all images.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from bench_maps import INPUT_HW, LEVELS, synthetic_maps

from featcache import Cache, CacheSpec, CacheWriter, ImageInfo
from pipeline.data.sources import Batch, Cached, maps_asked_for
from pipeline.heads.base import Widths
from pipeline.heads.registry import build_head
from pipeline.training.recipe import load_recipe, override

FROZEN = "mask-frozen-detr"
HEADS = (
    "baseline c1=false",
    "baseline",
    f"{FROZEN} c1=false neck=false image_encoder=none",
    f"{FROZEN} c1=false neck=false",
)
LAYERS = (f"{FROZEN} encoder_layer=2", f"{FROZEN} image_encoder=none", *HEADS)
DETECTIONS = 100


def layered_cache(folder: Path, images: int) -> Path:
    """H-DETR R50's maps with those of two more encoder layers, no annotations."""
    c1, *encoder = LEVELS
    layers = [replace(level, name=f"{level.name}{layer}") for layer in ("", "_l2", "_l6") for level in encoder]
    spec = CacheSpec(
        levels=(replace(c1, moments=True), *layers),
        detections=DETECTIONS,
        query_dim=256,
        source={"encoder": [level.name for level in encoder], "encoder_layer": 4, "name": "synthetic"},
        recipe={"categories": [{"id": 1, "name": "thing"}]},
    )
    infos = [ImageInfo(i + 1, *INPUT_HW, f"{i + 1}.jpg") for i in range(images)]
    with CacheWriter(folder, spec, infos) as writer:
        drawn = synthetic_maps(3 * images)
        for i in range(images):
            maps = {"c1": drawn[3 * i]["c1"]}
            for number, layer in enumerate(("", "_l2", "_l6")):
                maps |= {f"{level.name}{layer}": drawn[3 * i + number][level.name] for level in encoder}
            writer.put(
                i,
                "orig",
                maps=maps,
                queries=torch.randn(DETECTIONS, 256),
                boxes=torch.rand(DETECTIONS, 4) / 2 + 0.25,
                scores=torch.linspace(0.9, 0.01, DETECTIONS),
                labels=torch.zeros(DETECTIONS, dtype=torch.int64),
                input_hw=INPUT_HW,
            )
    return folder


@dataclass
class Reading:
    """A pass of the loader, again and again."""

    source: Cached
    batches: Iterator[Batch]
    images: int
    megabytes: float = 0.0
    processor_ms: list[float] = field(default_factory=list[float])
    per_second: list[float] = field(default_factory=list[float])

    @classmethod
    def of(cls, cache: Path, images: int, levels: Sequence[str] | None) -> "Reading":
        """Of the first images in the first view."""
        source = Cached(cache)
        views, indices = source.spec.views[:1], source.finished(source.spec.views[:1])[:images]
        stream = source.stream(1, views=views, indices=indices, seed=0, levels=levels)
        return cls(source, iter(stream), len(indices))

    def once(self, *, counts: bool) -> None:
        """Read every image once."""
        before, used, started = self.source.cache.bytes_read, time.process_time(), time.perf_counter()
        for _ in range(self.images):
            next(self.batches)
        if counts:
            self.megabytes = (self.source.cache.bytes_read - before) / self.images / 1e6
            self.processor_ms.append((time.process_time() - used) / self.images * 1e3)
            self.per_second.append(self.images / (time.perf_counter() - started))

    def cells(self) -> list[float]:
        """MB, milliseconds, images/s."""
        return [self.megabytes, statistics.median(self.processor_ms), statistics.median(self.per_second)]


def compare(cache: Path, heads: Sequence[str], images: int, rounds: int) -> None:
    """Print a row for each head."""
    spec = Cache(cache).spec
    print(f"{len(spec.levels)} maps: {', '.join(spec.level_names)}\n")
    print("| head | maps read | MB, all | read | ratio | ms, all | read | ratio | images/s, all | read | ratio |")
    print(f"|---{11 * '|---'}|".replace("|---|", "|", 1))
    for words in heads:
        name, *settings = words.split()
        recipe = override(load_recipe(name), dict(word.split("=", 1) for word in settings))
        with torch.device("meta"):
            head = build_head(recipe.family, recipe.head, Widths.of_cache(spec))
        maps = maps_asked_for([head.maps_read], spec)
        ways = [Reading.of(cache, images, levels) for levels in (None, maps)]
        for number in range(rounds + 1):  # the first opens files and buffers
            for way in ways:
                way.once(counts=number > 0)
        cells: list[str] = []
        for everything, some in zip(*(way.cells() for way in ways), strict=True):
            cells += [f"{everything:.3g}", f"{some:.3g}", f"{some / everything:.2f}"]
        print(f"| `{words}` | {' '.join(maps)} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--images", type=int, help="40 of a cache, else 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("heads", nargs="*", help="such as 'baseline c1=false'")
    options = parser.parse_args()
    if options.cache:
        compare(options.cache, options.heads or HEADS, options.images or 40, options.rounds)
        return
    with tempfile.TemporaryDirectory(dir=Path("/dev/shm") if Path("/dev/shm").is_dir() else None) as name:
        images = options.images or 2
        compare(layered_cache(Path(name) / "cache", images), options.heads or LAYERS, images, options.rounds)


if __name__ == "__main__":
    main()
