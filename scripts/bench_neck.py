"""Neck and channel mapper on the whole maps or on the boxes' grids: time of both.

    python scripts/bench_neck.py                        800 x 1216, C1 and encoder map of 256 channels
    python scripts/bench_neck.py --cache caches/train   the maps of a cache

A row is one image with so many boxes. `forward` and `step` (with the gradients of neck and mapper) are of
`MaskFrozenDetr.pool` without an image encoder: everything between the maps and the regions. Milliseconds of processor
time on the CPU (other programs do not count), else of the clock; medians of rounds that take the paths in turn. `auto`
is one of the two for each map. Full and local must agree to 1e-4, on a GPU without TF32, in which cuDNN convolves.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from featcache import Cache, Moments
from pipeline.data.sources import collate
from pipeline.detectors.base import Features
from pipeline.heads.base import Widths
from pipeline.heads.mask_frozen_detr import HeadConfig, MaskFrozenDetr

PATHS = ("full", "local", "auto")
BOXES = (2, 8, 20, 50, 100)


def random_features(input_hw: tuple[int, int], boxes: int, channels: int) -> Features:
    """One image: C1 and the stride-8 map, boxes as COCO's objects are: most of them small."""
    h, w = input_hw
    generator = torch.Generator().manual_seed(0)
    maps = {
        name: torch.randn(1, channels, h // stride, w // stride, generator=generator).to(
            memory_format=torch.channels_last
        )
        for name, stride in (("c1", 4), ("e8", 8))
    }
    sides = 0.03 * (0.9 / 0.03) ** torch.rand(boxes, 2, generator=generator)
    centres = sides / 2 + (1 - sides) * torch.rand(boxes, 2, generator=generator)
    return Features(
        maps=maps,
        encoder=("e8",),
        strides={"c1": 4, "e8": 8},
        queries=torch.zeros(1, boxes, channels),
        boxes=torch.cat([centres, sides], 1)[None],
        scores=torch.zeros(1, boxes),
        labels=torch.zeros(1, boxes, dtype=torch.int64),
        input_hw=torch.tensor([[h, w]]),
        moments={"c1": Moments.stack([Moments.of(maps["c1"][0])])},
    )


def cached_features(cache: Cache, boxes: int) -> Features:
    """The first image; its moments worked out where the cache has none."""
    features = collate([cache[0]], cache.spec).features
    moments = features.moments or {"c1": Moments.stack([Moments.of(features.c1[0])])}
    return dataclasses.replace(features, boxes=features.boxes[:, :boxes], moments=moments)


def widths_of(features: Features) -> Widths:
    """What a cache would say of these features."""
    channels = {name: one.shape[1] for name, one in features.maps.items()}
    return Widths(channels, features.strides, features.encoder, features.queries.shape[2], 80)


def times(features: Features, rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of forward and of a step, by path; raises SystemExit where the paths disagree."""
    config = HeadConfig(image_encoder="none", mask_scoring=False)
    torch.manual_seed(0)
    head = MaskFrozenDetr(config, widths_of(features)).to(features.boxes.device)
    used = [p for module in (head.neck, head.region_mapper) if module is not None for p in module.parameters()]
    weights = torch.randn(1, config.hidden, 1, 1, device=features.boxes.device)
    boxes = list(features.boxes)

    def forward(path: str) -> Tensor:
        head.config = dataclasses.replace(config, neck_path=path)  # pyright: ignore[reportArgumentType]
        return head.pool(features, boxes)

    def step(path: str) -> list[Tensor]:
        return list(torch.autograd.grad((forward(path) * weights).square().sum(), used))

    with torch.backends.cudnn.flags(enabled=False):
        exact = step("full"), step("local")
    for one, other in zip(*exact, strict=True):
        if (one - other).norm() > 1e-4 * one.norm() + 1e-3:
            raise SystemExit("the two paths disagree")
    found: dict[str, list[tuple[float, float]]] = {path: [] for path in PATHS}
    for _ in range(rounds):
        for path, rows in found.items():
            with torch.no_grad():
                alone = timed(lambda path=path: forward(path), features.boxes.device)
            rows.append((alone, timed(lambda path=path: step(path), features.boxes.device)))
    return {
        path: tuple(statistics.median(column) for column in zip(*rows, strict=True)) for path, rows in found.items()
    }  # pyright: ignore[reportReturnType]


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Milliseconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return (time.perf_counter() - started) * 1e3
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e3


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--input-hw", type=int, nargs=2, default=(800, 1216))
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--boxes", type=int, nargs="+", default=BOXES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    cache = Cache(given.cache) if given.cache else None
    print("| boxes | forward, full | local | auto | step, full | local | auto |\n|---|---|---|---|---|---|---|")
    for count in given.boxes:
        one = cached_features(cache, count) if cache else random_features(tuple(given.input_hw), count, given.channels)
        found = times(on_device(one, given.device), given.rounds)
        cells = [f"{found[path][i]:.1f}" for i in (0, 1) for path in PATHS]
        print(f"| {one.boxes.shape[1]} | {' | '.join(cells)} |", flush=True)


def on_device(features: Features, device: str) -> Features:
    """All tensors there."""
    names = ("queries", "boxes", "scores", "labels", "input_hw")
    moments = {name: Moments(one.mean.to(device), one.covariance.to(device)) for name, one in features.moments.items()}
    return dataclasses.replace(
        features,
        maps={name: one.to(device) for name, one in features.maps.items()},
        moments=moments,
        **{name: getattr(features, name).to(device) for name in names},
    )


if __name__ == "__main__":
    main()
