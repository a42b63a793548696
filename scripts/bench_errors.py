"""Errors of the codecs, and how the benchmark of the cache writes the features it measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bench_maps import Maps
from torchvision.ops import roi_align

from featcache import Cache, CacheSpec, CacheWriter, ImageInfo, LevelSpec
from featcache.disk import disk_usage
from featcache.spec import MAX_ERROR
from featcache.stats import level_statistics


def codec_errors(folder: Path, levels: tuple[LevelSpec, ...], features: list[Maps]) -> list[dict[str, Any]]:
    """Relative L2 error per codec and level over all images: of the values, and of 14 x 14 RoI samples of them.

    Of uint8 also with 255 steps everywhere, the fewest and most steps of an image, and what a level takes of raw fp16.
    """
    rows: list[dict[str, Any]] = []
    corners = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 0.6
    boxes = torch.cat(
        [corners, corners + 0.05 + 0.35 * torch.rand(40, 2, generator=torch.Generator().manual_seed(1))], 1
    )
    for name, codec, max_error in (
        ("uint8", "uint8", MAX_ERROR),
        ("uint8, 255 steps", "uint8", 0.0),
        ("fp16", "fp16", 0.0),
    ):
        path = folder / name.replace(" ", "")
        with open_writer(path, levels, len(features), codec, max_error) as writer:
            for index, maps in enumerate(features):
                put(writer, index, maps)
        cache = Cache(path)
        statistics_of = level_statistics(cache)
        for level in levels:
            pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
            sampled: list[tuple[torch.Tensor, torch.Tensor]] = []
            for index, maps in enumerate(features):
                true, stored = maps[level.name], cache.entry(index, levels=[level.name]).maps[level.name].contiguous()
                rois = [boxes * torch.tensor([true.shape[2], true.shape[1]] * 2)]
                pairs.append((true, stored))
                sampled.append((_pooled(true, rois), _pooled(stored, rois)))
            rows.append(
                {
                    "values": name,
                    "level": level.name,
                    "steps": _steps(statistics_of[level.name]),
                    "of fp16": round(
                        disk_usage(path / f"views/orig/maps/{level.name}")[0]
                        / sum(2 * maps[level.name].numel() for maps in features),
                        3,
                    ),
                    "error": f"{_relative(pairs):.3%}",
                    "RoI error": f"{_relative(sampled):.3%}",
                }
            )
    return rows


def open_writer(
    path: Path, levels: tuple[LevelSpec, ...], images: int, codec: Any, max_error: float = MAX_ERROR
) -> CacheWriter:
    """A cache for so many images of that codec."""
    spec = CacheSpec(levels, detections=1, query_dim=1, codec=codec, max_error=max_error, source={"name": "benchmark"})
    table = [ImageInfo(i, 800, 1216, f"{i}.jpg") for i in range(images)]
    return CacheWriter(path, spec, table, threads=1)


def put(writer: CacheWriter, index: int, maps: Maps) -> None:
    """Store one image of those maps and one detection of zeros."""
    one = torch.zeros(1, dtype=torch.int64)
    writer.put(
        index, "orig", maps=maps, queries=one[None].float(), boxes=torch.zeros(1, 4), scores=one.float(), labels=one,
        input_hw=(800, 1216),
    )  # fmt: skip


def _pooled(values: torch.Tensor, rois: list[torch.Tensor]) -> torch.Tensor:
    return roi_align(values.contiguous()[None], rois, 14, aligned=True)


def _steps(found: dict[str, Any]) -> str:
    return "" if found["steps_max"] is None else f"{found['steps_min']} to {found['steps_max']}"


def _relative(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """L2 norm of all differences by that of all true values."""
    error = sum(float((true - other).square().sum()) for true, other in pairs)
    return (error / sum(float(true.square().sum()) for true, _ in pairs)) ** 0.5
