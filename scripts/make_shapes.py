"""Draw a COCO-format set of anti-aliased shapes over textured backgrounds, with exact masks; one seed, one set.

python scripts/make_shapes.py shapes --train 200 --val 50
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from featcache import ImageInfo
from featcache.progress import Progress
from pipeline.masks import rle
from pipeline.masks.id_map import IdMap
from pipeline.masks.segment_files import SegmentFiles

BACKGROUND = 9
"""Category id of what is behind the shapes, the one kind of stuff."""
CLASSES = ("disc", "square", "triangle", "star", "ring", "cross", "crescent", "bar")
"""Category ids 1..8 in this order."""
SHORT, LONG = 160, (160, 192, 224)
"""Sides of a picture in pixels; half of the pictures stand."""
SIDES = (14.0, 100.0)
"""Size of a shape in pixels, evenly over the logarithm."""
LEAST_VISIBLE = 0.5
"""A new shape may hide this much of an older one and not more."""
OVERSAMPLING = 4


Window = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True)
class Drawing:
    """One picture, uint8 "h w 3", and of each of its k objects, the later over the earlier, what one sees."""

    pixels: np.ndarray
    labels: list[int]
    """Positions in CLASSES."""
    masks: list[np.ndarray]
    """bool "h w"."""

    def boxes_xyxy(self) -> np.ndarray:
        """Tight boxes of the masks, in pixels. float64 "k 4" """
        spans = [(np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))) for mask in self.masks]
        return np.array([(x[0], y[0], x[-1] + 1, y[-1] + 1) for x, y in spans], dtype=float).reshape(-1, 4)


def draw(rng: np.random.Generator, hw: tuple[int, int] | None = None) -> Drawing:
    """A picture with 1 to 12 objects, of a random size if none is given."""
    height, width = hw or random_hw(rng)
    pixels = _texture(rng, (height, width))
    labels, masks = list[int](), list[np.ndarray]()
    for _ in range(rng.integers(1, 13)):
        for _attempt in range(8):  # a place where it hides no other too much; none found, one object less
            label = int(rng.integers(len(CLASSES)))
            side = float(np.exp(rng.uniform(*np.log(SIDES))))
            stamp = _shape(rng, CLASSES[label], side)
            window, part = _place(rng, stamp.shape, (height, width))
            mask = np.zeros((height, width), dtype=bool)
            mask[window] = stamp[part] > 0.5
            left = [old & ~mask for old in masks]
            enough = all(new.sum() >= LEAST_VISIBLE * old.sum() for new, old in zip(left, masks, strict=True))
            if mask.sum() >= 60 and enough:
                labels.append(label)
                masks = [*left, mask]
                _paint(rng, pixels[window], stamp[part])
                break
    noisy = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(0, 8))
    # what later shapes cut off twice or thrice may have shrunk to nothing worth a name
    seen = [i for i, mask in enumerate(masks) if mask.sum() >= 40]
    return Drawing(noisy.clip(0, 255).astype(np.uint8), [labels[i] for i in seen], [masks[i] for i in seen])


def random_hw(rng: np.random.Generator) -> tuple[int, int]:
    """A picture's height and width."""
    sides = SHORT, int(rng.choice(LONG))
    return sides if rng.random() < 0.5 else sides[::-1]


def _texture(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    """Two colours mixed by noise of several scales. float32 "h w 3", 0-255."""
    mix = np.zeros(hw, dtype=np.float32)
    for cells in (3, 8, 24):
        coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        mix += np.asarray(coarse.resize(hw[::-1], Image.Resampling.BICUBIC)) * rng.uniform(0.2, 1)
    mix = (mix - mix.min()) / (np.ptp(mix) + 1e-6)
    first = rng.uniform(0, 255, 3)
    second = (first + rng.uniform(-90, 90, 3)).clip(0, 255)
    return (mix[..., None] * first + (1 - mix[..., None]) * second).astype(np.float32)


def _paint(rng: np.random.Generator, pixels: np.ndarray, coverage: np.ndarray) -> None:
    """Blend one object in, coverage "h w" in 0-1: plain, shaded or striped, in a colour unlike what it covers."""
    height, width = coverage.shape
    behind = pixels[coverage > 0.5].mean(0)
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - behind).max() < 70:
        colour = rng.uniform(0, 255, 3)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    kind = rng.integers(3)
    shade = np.zeros_like(along) if kind == 0 else along / 100 if kind == 1 else np.sin(along * rng.uniform(0.5, 1.5))
    paint = colour + 25 * shade[..., None]
    pixels += coverage[..., None] * (paint - pixels)


def _place(rng: np.random.Generator, size: tuple[int, int], hw: tuple[int, int]) -> tuple[Window, Window]:
    """Somewhere with its middle on the canvas: which part of the canvas, and which part of the stamp lies there."""
    canvas, stamp = list[slice](), list[slice]()
    for side, own in zip(hw, size, strict=True):
        start = int(rng.integers(0, side)) - own // 2
        canvas.append(slice(max(start, 0), min(start + own, side)))
        stamp.append(slice(max(-start, 0), min(own, side - start)))
    return (canvas[0], canvas[1]), (stamp[0], stamp[1])


def _shape(rng: np.random.Generator, name: str, side: float) -> np.ndarray:
    """A shape of this size at a random angle, as the part of each pixel that it covers. float32, 0-1."""
    cells = int(np.ceil(side * 1.1)) + 2
    big = cells * OVERSAMPLING
    image = Image.new("L", (big, big))
    canvas = ImageDraw.Draw(image)
    turn = rng.uniform(0, 2 * np.pi)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    def outline(points: np.ndarray) -> list[tuple[float, float]]:
        """Points in a circle of radius 1 -> the big canvas."""
        return [tuple(p) for p in (points @ turned.T) * (side / 2 * OVERSAMPLING) + big / 2]

    circle = _regular(64)
    stretch = np.array([1.0, rng.uniform(0.7, 1.0)])
    inner = rng.uniform(0.5, 0.65)
    if name == "disc":
        canvas.polygon(outline(circle * stretch), fill=255)
    elif name == "square":
        canvas.polygon(outline(_regular(4) * stretch), fill=255)
    elif name == "triangle":
        canvas.polygon(outline(_regular(3)), fill=255)
    elif name == "star":
        radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)[:, None]
        canvas.polygon(outline(_regular(10) * radius), fill=255)
    elif name == "ring":
        canvas.polygon(outline(circle), fill=255)
        canvas.polygon(outline(circle * inner), fill=0)
    elif name == "cross":
        arm = rng.uniform(0.22, 0.32)
        for box in ((1.0, arm), (arm, 1.0)):
            canvas.polygon(outline(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * box * 0.95), fill=255)
    elif name == "crescent":
        canvas.polygon(outline(circle), fill=255)
        canvas.polygon(outline(circle * 0.85 + (0.5, 0)), fill=0)
    elif name == "bar":
        canvas.polygon(
            outline(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (1.0, rng.uniform(0.16, 0.26))), fill=255
        )
    small = image.resize((cells, cells), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def _regular(corners: int) -> np.ndarray:
    """Corners of a regular polygon in the unit circle. "corners 2" """
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def id_map(drawing: Drawing) -> IdMap:
    """Segment ids: each object from 1, what is left is the background, the last."""
    ids = np.full(drawing.pixels.shape[:2], len(drawing.masks) + 1, dtype=np.int64)
    for number, mask in enumerate(drawing.masks, start=1):
        ids[mask] = number
    return ids


def write_set(folder: Path, count: int, seed: int) -> Path:
    """Draw `count` pictures into FOLDER/images; returns FOLDER/annotations.json. A set that is there whole stays.

    FOLDER/panoptic.json and FOLDER/panoptic/ have the same as segments, with what is behind the shapes.
    """
    file, segments = folder / "annotations.json", folder / "panoptic.json"
    info = {"description": f"drawn shapes, seed {seed}", "short": SHORT, "long": LONG, "sides": SIDES}
    info = json.loads(json.dumps(info))
    if file.is_file() and segments.is_file():
        there = json.loads(file.read_text())
        if there.get("info") == info and len(there["images"]) == count:
            return file
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    maps = SegmentFiles(segments.with_suffix(""))
    with Progress(count, "pictures") as progress:
        for number in range(1, count + 1):
            drawing = draw(np.random.default_rng([seed, number]))
            name = f"{number:06d}.png"
            Image.fromarray(drawing.pixels).save(folder / "images" / name)
            height, width = drawing.pixels.shape[:2]
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for label, mask, box in zip(drawing.labels, drawing.masks, drawing.boxes_xyxy(), strict=True):
                counts = rle.encode(mask)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": label + 1,
                        "segmentation": {"size": [height, width], "counts": counts.decode()},
                        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                    }
                )
            ids = id_map(drawing)
            names = enumerate([*(label + 1 for label in drawing.labels), BACKGROUND], start=1)
            found = [
                {"id": i, "category_id": category_id, "area": int((ids == i).sum()), "iscrowd": 0}
                for i, category_id in names
                if (ids == i).any()
            ]
            maps.add(ImageInfo(number, height, width, name), ids, found)
            progress.update(1)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    things = [{**category, "isthing": 1} for category in categories]
    maps.keep([*things, {"id": BACKGROUND, "name": "background", "isthing": 0}])
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(content))
    temporary.replace(file)
    return file


def main() -> None:
    """Draw a training and a validation set; neither shares a picture with the other or the detector's training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--val", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(write_set(options.out / "train", options.train, 2 * options.seed))
    print(write_set(options.out / "val", options.val, 2 * options.seed + 1))


if __name__ == "__main__":
    main()
