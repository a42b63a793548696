"""The pieces of a small cache of random maps, for the tests of this folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from featcache import CacheSpec, GroundTruth, ImageInfo, LevelSpec

LEVELS = (LevelSpec("c1", 4, 6, (8, 10)), LevelSpec("e16", 16, 5, (2, 3)))
DETECTIONS, QUERY_DIM = 7, 4


def make_spec(**changes: Any) -> CacheSpec:
    fields: dict[str, Any] = {
        "levels": LEVELS,
        "detections": DETECTIONS,
        "query_dim": QUERY_DIM,
        "max_error": 0.006,  # with which these maps get 128 to 220 steps
        "source": {"name": "toy", "transform": {"short_side": 32}},
        "dataset": {"sha256": "0" * 8},
        "recipe": {"categories": [{"id": 3, "name": "cat"}], "command": "python -m pipeline extract --cache X"},
    }
    return CacheSpec(**{**fields, **changes})


def make_images(count: int) -> list[ImageInfo]:
    return [ImageInfo(100 + i, 30 + i, 40, f"bild-{i}-ä.jpg") for i in range(count)]


def make_truth(count: int) -> list[GroundTruth]:
    """Image i has i % 3 annotations."""
    truths: list[GroundTruth] = []
    for i in range(count):
        k = i % 3
        rng = np.random.default_rng(i)
        truths.append(
            GroundTruth(
                ids=np.arange(k) + 10 * i,
                category_ids=np.full(k, 3),
                boxes_xywh=rng.random((k, 4)) * 20,
                areas=rng.random(k) * 100,
                iscrowd=np.arange(k) == 1,
                rles=[b"PPYo0" * (j + 1) for j in range(k)],
            )
        )
    return truths


def make_features(index: int, view: str = "orig") -> dict[str, Any]:
    """Arguments of `put` for an image: smooth maps of a size that differs between images."""
    generator = torch.Generator().manual_seed(1000 * index + len(view))
    hw = {"c1": [(8, 10), (10, 8), (6, 10)][index % 3], "e16": [(2, 3), (3, 2), (2, 2)][index % 3]}
    maps = {level.name: torch.randn(level.channels, *hw[level.name], generator=generator).cumsum(1) for level in LEVELS}
    n = DETECTIONS - index % 2
    return {
        "maps": maps,
        "queries": torch.randn(n, QUERY_DIM, generator=generator),
        "boxes": torch.rand(n, 4, generator=generator),
        "scores": torch.rand(n, generator=generator),
        "labels": torch.randint(0, 1, (n,), generator=generator),
        "input_hw": (32 - index % 3, 40),
    }


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Every array of a cache by its path, read by plain zarr-python."""
    group = zarr.open_group(path, mode="r")
    return {name: node[...] for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}


def flip_byte(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def json_of(result: tuple[int, str, str], code: int = 0) -> Any:
    """What a command with --json printed, where it ended with this code."""
    assert result[0] == code, result[2]
    return json.loads(result[1])
