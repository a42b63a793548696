"""Extraction with the cache against the detector alone, the same images in the same run.

    python scripts/bench_extract.py --detector deimv2-femto --weights femto.onnx --images val2017 --annotations val.json

Both decode the same images ahead and run the same batches; only one writes, until its last image is flushed. What is
done once, however many images follow, is told apart: making the cache, choosing row differences on its first images. A
round is one of each, in turn first and second, so that what else the machine does meets both. Told are medians of the
rounds per image, by the clock and in processor time of the whole process (of which other programs take none, though
they slow it down), and their ratios. The goal is at most 1.10. A last round tells which part of writing takes how much.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from kernel_timing import wait
from peak_memory import peak_bytes

from featcache import CacheWriter, codecs, commit, writer
from featcache.delta import MEASURED_IMAGES
from featcache.disk import human_bytes
from pipeline.data.coco import CocoSet, load_coco
from pipeline.data.decode import decode_ahead, plan_batches
from pipeline.detectors.base import FrozenDetector
from pipeline.detectors.device import host_threads, torch_device
from pipeline.detectors.registry import build_detector
from pipeline.extract import cache_spec, extract_batches

PARTS: list[tuple[Any, str, str]] = [
    (writer, "detection_rows", "boxes, scores, labels, queries"),
    (codecs, "fewest_steps", "choosing the steps"),
    (codecs, "channel_range", "least and greatest values"),
    (codecs, "encode", "rounding"),
    (codecs.Encoded, "moments", "moments of C1"),
    (commit, "encode_bands", "zstd and checksums"),
    (commit, "replace_files", "map files, with their flushes"),
    (commit, "write_rows", "rows and flags, with their flushes"),
    (CacheWriter, "put", "the rest of put"),
    (commit.Committer, "commit", "the rest of committing"),
]
"""Functions that writing spends its time in, as their callers know them, each with what it does."""


@dataclass(frozen=True)
class Cost:
    """Of one image: milliseconds of the clock, and of all processors together."""

    wall: float
    cpu: float


def main() -> None:
    """Print what an image costs with and without the cache, the ratios, and where the writing spends its time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--detector", required=True)
    for name in ("weights", "images", "annotations"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--codec", default="uint8")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = build_detector(options.detector, options.weights, device=options.device)
    coco = load_coco(options.annotations, options.images, options.limit)
    rounds: list[tuple[Cost, Cost]] = []
    for number in range(options.rounds + 1):
        cached_first = with_cache(model, coco, options)[0] if number % 2 else None
        alone = detector_alone(model, coco, options)
        cached = cached_first or with_cache(model, coco, options)[0]
        if number:  # the first round warms the page cache and the runtime
            rounds.append((alone, cached))
    for name, costs in zip(
        ("detector alone", f"with the cache ({options.codec})"), zip(*rounds, strict=True), strict=True
    ):
        walls, cpus = ([getattr(cost, what) for cost in costs] for what in ("wall", "cpu"))
        print(f"{name:24} {spread(walls)} an image, processor time {spread(cpus)}")
    for name, what in (("clock", "wall"), ("processor time", "cpu")):
        alone, cached = ([getattr(both[way], what) for both in rounds] for way in (0, 1))
        ratios = [after / before for before, after in zip(alone, cached, strict=True)]
        print(
            f"ratio by {name:15} {statistics.median(cached) / statistics.median(alone):.3f} of the medians, "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) round by round, goal 1.10"
        )
    spent: dict[str, float] = {}
    whole, begun = with_cache(model, coco, options, parts_timed(spent))
    print(f"beginning a cache, once: {begun.wall:.0f} ms, processor time {begun.cpu:.0f} ms with its first images")
    print(f"processor time of the threads that write, ms per image, while all took {whole.cpu:.1f}:")
    for name, milliseconds in spent.items():
        print(f"  {name:40} {milliseconds / (len(coco.images) - MEASURED_IMAGES):6.2f}")
    counts = max(MEASURED_IMAGES + 1, len(coco.images) // 3), len(coco.images)
    peaks = [(count, peak_memory(options, count)) for count in counts]
    told = ", ".join(f"of {count} images {human_bytes(peak)}" for count, peak in peaks)
    print(f"peak memory of an extraction, each in a process of its own: {told}")


def peak_memory(options: argparse.Namespace, images: int) -> int:
    """Most bytes that a new process has in memory while it extracts so many images."""
    context = multiprocessing.get_context("spawn")
    peak = context.Value("q", 0)
    process = context.Process(target=_extract, args=(options, images, peak))
    process.start()
    process.join()
    return peak.value


def _extract(options: argparse.Namespace, images: int, peak: Any) -> None:
    model = build_detector(options.detector, options.weights, device=options.device)
    with_cache(model, load_coco(options.annotations, options.images, images), options)
    peak.value = peak_bytes()


def spread(values: list[float]) -> str:
    """Median, least and greatest of milliseconds."""
    return f"{statistics.median(values):6.1f} ms ({min(values):.1f} to {max(values):.1f})"


def detector_alone(model: FrozenDetector, coco: CocoSet, options: argparse.Namespace) -> Cost:
    """Detect every image but the first few once, nothing kept."""
    clock = Clock(len(coco.images) - MEASURED_IMAGES)
    batches = plan_batches(coco, list(range(MEASURED_IMAGES, len(coco.images))), model.transform, options.batch_size)
    for batch in decode_ahead(coco, batches, model.transform, "orig", threads=host_threads(options.device)):
        model.detect(batch.images)
    wait(torch_device(options.device))  # a GPU may still be at the last batch
    return clock.cost()


def with_cache(
    model: FrozenDetector, coco: CocoSet, options: argparse.Namespace, around: AbstractContextManager[Any] | None = None
) -> tuple[Cost, Cost]:
    """Extract the same images into a new cache, until the last one is flushed; and what beginning it cost in all."""
    clock = Clock(1)
    with tempfile.TemporaryDirectory() as folder:
        spec = cache_spec(model, coco, options.codec, ("orig",))
        threads = host_threads(options.device)
        with CacheWriter(Path(folder) / "cache", spec, coco.images, coco.ground_truth, threads=threads) as writer:
            pending = writer.pending("orig")
            todo = [{"orig": some} for some in (pending[:MEASURED_IMAGES], pending[MEASURED_IMAGES:])]
            extract_batches(model, coco, writer, todo[0], options.batch_size, strict=True, threads=threads)
            writer.flush()
            begun, clock = clock.cost(), Clock(len(todo[1]["orig"]))
            with around or nullcontext():
                extract_batches(model, coco, writer, todo[1], options.batch_size, strict=True, threads=threads)
                writer.flush()
            return clock.cost(), begun


class Clock:
    """Starts when it is made."""

    def __init__(self, images: int) -> None:
        self._images, self._wall, self._cpu = images, time.perf_counter(), time.process_time()

    def cost(self) -> Cost:
        """What has passed since, per image."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Cost(wall * 1e3 / self._images, cpu * 1e3 / self._images)


@contextmanager
def parts_timed(spent: dict[str, float]) -> Generator[None]:
    """Adds to `spent` milliseconds of processor time of `PARTS`, each without what it calls of the others."""
    local = threading.local()

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(local, "inner", 0.0)
            local.inner, started = 0.0, time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.thread_time() - started
                spent[name] = spent.get(name, 0.0) + 1e3 * (whole - local.inner)
                local.inner = outer + whole

        return run

    originals = [(place, function, vars(place)[function]) for place, function, _ in PARTS]
    try:
        for place, function, name in PARTS:
            setattr(place, function, timed(getattr(place, function), name))
        yield
    finally:
        for place, function, original in originals:
            setattr(place, function, original)


if __name__ == "__main__":
    main()
