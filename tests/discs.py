"""A small cache on which heads learn in seconds: pictures of two discs each, which C1 shows."""

from pathlib import Path

import numpy as np
import torch

from featcache import CacheSpec, CacheWriter, GroundTruth, ImageInfo, LevelSpec
from pipeline.data.transforms import original_to_view, xywh_to_xyxy
from pipeline.masks import rle

SIDE = 64


def disc(centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2


def write_discs(path: Path, *, images: int = 6, name: str = "toy", seed: int = 0) -> Path:
    """Each image has two discs; the detections are the boxes of the discs and some noise. Views orig and hflip."""
    levels = (LevelSpec("c1", 4, 8, (16, 16)), LevelSpec("e16", 16, 8, (4, 4)), LevelSpec("e32", 32, 8, (2, 2)))
    spec = CacheSpec(
        levels=levels,
        detections=6,
        query_dim=8,
        codec="uint8",
        views=("orig", "hflip"),
        source={"name": name, "encoder": ["e16", "e32"]},
        dataset={"images": images, "seed": seed},
        recipe={"categories": [{"id": 3, "name": "disc"}, {"id": 5, "name": "ring"}]},
    )
    rng = np.random.default_rng(seed)
    infos = [ImageInfo(10 + i, SIDE, SIDE, f"{i}.png") for i in range(images)]
    scenes = [[disc(tuple(rng.uniform(16, 48, 2)), rng.uniform(8, 16)) for _ in range(2)] for _ in infos]
    truths: list[GroundTruth] = []
    for number, masks in enumerate(scenes):
        counts = [rle.encode(mask) for mask in masks]
        boxes = np.array([rle.box_xywh(c, (SIDE, SIDE)) for c in counts])
        areas = np.array([float(m.sum()) for m in masks])
        ids = np.arange(2) + 2 * number + 1
        truths.append(GroundTruth(ids, np.array([3, 5]), boxes, areas, np.zeros(2, dtype=bool), counts))
    with CacheWriter(path, spec, infos, truths) as writer:
        for view in spec.views:
            for index, masks in enumerate(scenes):
                torch.manual_seed(index)
                shown = torch.from_numpy(np.stack(masks)).float()
                shown = shown.flip(-1) if view == "hflip" else shown
                c1 = torch.cat([torch.nn.functional.avg_pool2d(shown, 4), torch.randn(6, 16, 16) * 0.1])
                found = original_to_view(xywh_to_xyxy(torch.from_numpy(truths[index].boxes_xywh)), (SIDE, SIDE), view)
                boxes = torch.cat([found.float(), torch.rand(4, 4) * 0.5 + 0.1])
                writer.put(
                    index,
                    view,
                    maps={"c1": c1, "e16": torch.randn(8, 4, 4), "e32": torch.randn(8, 2, 2)},
                    queries=torch.cat([torch.eye(8)[:2], torch.randn(4, 8)]),
                    boxes=boxes,
                    scores=torch.tensor([0.9, 0.8, 0.1, 0.1, 0.05, 0.05]),
                    labels=torch.tensor([0, 1, 0, 1, 0, 1]),
                    input_hw=(SIDE, SIDE),
                )
    return path
