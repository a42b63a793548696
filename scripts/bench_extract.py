"""Extraction with the cache against the detector alone, the same images in the same run.

    python scripts/bench_extract.py --detector deimv2-femto --weights femto.onnx --images val2017 --annotations val.json

Both decode the same images ahead and run the same batches; only one writes. Rounds alternate, the ratio is that of the
medians. The goal is at most 1.10.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from featcache import CacheWriter
from pipeline.data.coco import CocoSet, load_coco
from pipeline.data.decode import decode_ahead, plan_batches
from pipeline.detectors.base import FrozenDetector
from pipeline.detectors.registry import build_detector
from pipeline.extract import cache_spec, extract_batches


def main() -> None:
    """Print seconds and images/s of both, and their ratio."""
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
    alone, cached = [], []
    for number in range(options.rounds + 1):
        times = detector_alone(model, coco, options.batch_size), with_cache(model, coco, options)
        if number:  # the first round warms the page cache and the runtime
            alone.append(times[0])
            cached.append(times[1])
    for name, seconds in (("detector alone", alone), (f"with the cache ({options.codec})", cached)):
        middle = statistics.median(seconds)
        rate = len(coco.images) / middle
        print(f"{name:26} {middle:6.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {rate:5.1f} images/s")
    print(f"ratio {statistics.median(cached) / statistics.median(alone):.3f}, goal at most 1.10")


def detector_alone(model: FrozenDetector, coco: CocoSet, batch_size: int) -> float:
    """Seconds to detect every image once, nothing kept."""
    started = time.perf_counter()
    batches = plan_batches(coco, list(range(len(coco.images))), model.transform, batch_size)
    for batch in decode_ahead(coco, batches, model.transform, "orig"):
        model.detect(batch.images)
    return time.perf_counter() - started


def with_cache(model: FrozenDetector, coco: CocoSet, options: argparse.Namespace) -> float:
    """Seconds to extract every image into a new cache, until the last one is flushed."""
    with tempfile.TemporaryDirectory() as folder:
        spec = cache_spec(model, coco, options.codec, ("orig",))
        started = time.perf_counter()
        with CacheWriter(Path(folder) / "cache", spec, coco.images, coco.ground_truth) as writer:
            extract_batches(model, coco, writer, {"orig": writer.pending("orig")}, options.batch_size, strict=True)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
