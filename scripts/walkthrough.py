"""The project in one file, read from top to bottom: pictures -> detector -> cache -> head -> masks -> AP, in Python.

python scripts/walkthrough.py            about a minute on one processor core; everything lands in walkthrough/

Every part below is one step of the flow and says which command does the same. Nothing is downloaded: the pictures are
drawn, the detector is the small one that comes with the package.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from make_shapes import write_set
from PIL import Image
from torch import Tensor, nn

from featcache import Cache
from pipeline import evaluate, extract, report, train
from pipeline.detectors.base import Features
from pipeline.detectors.registry import build_detector
from pipeline.heads.base import HeadOutput, MaskHead, Widths, boxes_in_pixels, pool_without_padding
from pipeline.heads.registry import FAMILIES
from pipeline.ops.roi_align import roi_align
from pipeline.predict import overlay, predict_image
from pipeline.training.checkpoint import load_head

DETECTOR = "shapes-tiny"
"""A name from `python -m pipeline detectors`, a TOML file, or `hf:` and a folder or hub id."""


# 1. Pictures. ---------------------------------------------------------------------------------------------------------
# The pipeline reads what COCO has: a folder of images and one JSON with masks. Here we draw both, so that every mask is
# known to the pixel. Twelve pictures to learn from are far too few; they are enough to see everything move.


def draw(folder: Path, *, train_pictures: int, val_pictures: int) -> tuple[Path, Path]:
    """Draw two sets; returns their annotation files, each beside its folder `images`."""
    return write_set(folder / "train", train_pictures, seed=2), write_set(folder / "val", val_pictures, seed=3)


# 2. Stage 1: the detector, once. --------------------------------------------------------------------------------------
# `python -m pipeline extract` is this one call. The frozen detector sees each picture, and its mirror image as a second
# view, and what it gives goes to disk: encoder maps, backbone C1, queries, boxes, scores, and the annotations too.
# Stop it at any instant and call it again: it does what is missing. Called on a finished cache it does nothing.


def fill(cache: Path, annotations: Path, views: tuple[str, ...] = ("orig",)) -> Path:
    """Extract one set into a cache."""
    return extract.main(
        detector=DETECTOR,
        images=annotations.parent / "images",
        annotations=annotations,
        cache=cache,
        views=views,
    )


# 3. What is in it. ----------------------------------------------------------------------------------------------------
# `featcache info`, `ls` and `show` print this. In Python a cache is a list of entries, and an entry holds tensors.
# Maps are stored as 8-bit numbers and come back as float32.


def look(cache: Path) -> Cache:
    """Print what the cache says of itself and of its first image."""
    opened = Cache(cache)
    print(f"{len(opened)} images in views {', '.join(opened.views)}; fingerprint {opened.fingerprint}")
    entry = opened[0]
    for name, values in entry.maps.items():  # "c h w"
        print(f"  {name:4} {tuple(values.shape)}  stride {opened.spec.level(name).stride}, mean {values.mean():+.3f}")
    best = entry.scores.argmax()  # boxes are cxcywh in 0-1 of the view
    print(f"  {len(entry.boxes)} detections, the best {entry.scores[best]:.2f} at {entry.boxes[best].tolist()}")
    print(f"  {len(entry.ground_truth)} annotated objects, queries {tuple(entry.queries.shape)}")
    return opened


# 4. Stage 2: a head, from the cache alone. ----------------------------------------------------------------------------
# `python -m pipeline train`. From here on nobody opens a picture or runs the detector. `unet` is a head of
# `configs/heads/`; the settings replace fields of it or of its training, as `key=value` words of the command do. The
# run directory gets the settings, checkpoints, metrics.jsonl and, at the end, the weights. Called again it goes on.


def learn(cache: Path, run: Path, head: str, **settings: Any) -> Path:
    """Train a head; returns the run directory."""
    return train.main(cache=cache, head=head, run=run, settings=settings)


# 5. AP. ---------------------------------------------------------------------------------------------------------------
# `python -m pipeline evaluate`. `bbox` is the AP of the frozen detector, which no head can change much; `segm` is that
# of the masks. metrics/ of the run has AP per class and where AP is lost, results.json is what pycocotools reads.


def judge(cache: Path, run: Path) -> dict[str, Any]:
    """Print both AP in percent; returns the content of metrics.json."""
    metrics = evaluate.main(cache=cache, run=run)
    print(f"  box AP {metrics['bbox']['AP']:.1f}, mask AP {metrics['segm']['AP']:.1f}  ({run})")
    return metrics


# 6. A picture without annotations. ------------------------------------------------------------------------------------
# `python -m pipeline predict` does this for a folder. Here the detector runs again, as there is no cache of new
# pictures, and the head takes its features as they come: without a cache in between the masks are the same.


def mask_picture(picture: Path, run: Path, out: Path) -> Path:
    """Draw the masks of one picture; returns the overlay."""
    detector = build_detector(DETECTOR)
    head, trained = load_head(run)
    image = Image.open(picture)
    found = predict_image(image, 1, detector, head, trained.categories)  # COCO results, best score first
    overlay(image, found, trained.categories, min_score=0.4, zoom=3).save(out)
    return out


# 7. A head of your own. -----------------------------------------------------------------------------------------------
# A head is a dataclass of its choices and a module: features, boxes and queries in, mask logits in the frame of each
# box out. Matching, sampled points, losses, resume, scoring, pasting and evaluation are the same for every head.
# docs/adding_a_head.md says more.


@dataclass(frozen=True)
class ConvolutionsConfig:
    """The choices of this head: they become the keys of its TOML and the words of the command line."""

    hidden: int = 32
    roi: int = 16
    """Cells along each side of the grid in a box."""


class Convolutions(MaskHead):
    """C1 and the finest encoder map inside each box, the query added everywhere, two convolutions."""

    def __init__(self, config: ConvolutionsConfig, widths: Widths) -> None:
        super().__init__()
        self.config, self.strides, self.finest = config, widths.strides, widths.encoder[0]
        self.mappers = nn.ModuleDict(
            {name: nn.Conv2d(widths.channels[name], config.hidden, 1) for name in ("c1", self.finest)}
        )
        self.query = nn.Linear(widths.query_dim, config.hidden)
        self.layers = nn.Sequential(
            nn.GELU(), nn.Conv2d(config.hidden, config.hidden, 3, padding=1), nn.GELU(), nn.Conv2d(config.hidden, 1, 1)
        )

    def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> HeadOutput:
        """See `MaskHead.forward`: boxes are cxcywh in 0-1, one tensor per image, and so are queries."""
        regions = pool_without_padding(self.pool, features, boxes)  # "m hidden roi roi"
        regions = regions + self.query(torch.cat(queries))[:, :, None, None]
        return HeadOutput(mask_logits=self.layers(regions)[:, 0])

    def pool(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """RoIAlign over the sum of both maps; the coarse one is upsampled on the way, inside the boxes only."""
        maps = [(mapper(features.maps[name]), self.strides[name]) for name, mapper in self.mappers.items()]
        return roi_align(maps, boxes_in_pixels(features, boxes), self.config.roi)


def write_own_head(file: Path) -> Path:
    """Make the family known, and write a TOML that names it, so that it trains like any other head."""
    FAMILIES["convolutions"] = (ConvolutionsConfig, Convolutions)
    file.write_text('family = "convolutions"\n\n[head]\nhidden = 48\n\n[train]\nlr = 3e-3\n')
    return file


# All of it, in this order. --------------------------------------------------------------------------------------------


def main(out: Path, *, train_pictures: int = 12, val_pictures: int = 6, steps: int = 120) -> dict[str, Any]:
    """Walk through; returns what came out, by name."""
    say("1. draw", f"{train_pictures} + {val_pictures} pictures with exact masks")
    drawn, unseen = draw(out / "pictures", train_pictures=train_pictures, val_pictures=val_pictures)
    say("2. extract", "the detector runs once, the cache keeps what it gives")
    train_cache = fill(out / "train-cache", drawn, views=("orig", "hflip"))
    val_cache = fill(out / "val-cache", unseen)
    say("3. look", "what the cache holds")
    opened = look(train_cache)
    say("4. train", f"the head 'unet' for {steps} steps; its own recipe has 2,400")
    short = {"steps": steps, "batch_size": 4, "warmup": 5}
    unet = learn(train_cache, out / "unet", "unet", **short, hidden=32, ema=0, lr=3e-3)
    say("5. evaluate", "on pictures that nobody has seen")
    metrics = {"unet": judge(val_cache, unet)}
    say("6. predict", "one of them")
    drawing = mask_picture(unseen.parent / "images" / "000001.png", unet, out / "overlay.png")
    say("7. another head", "written above, trained from the same cache; the detector has nothing to do")
    toml = write_own_head(out / "convolutions.toml")
    own = learn(train_cache, out / "convolutions", str(toml), **short)
    metrics["convolutions"] = judge(val_cache, own)
    page = report.main(runs=[unet, own], out=out / "report.html", cache=val_cache, count=2)
    say("done", f"look at {drawing} and, in a browser, at {page}: both heads side by side")
    return {"cache": opened, "runs": [unet, own], "metrics": metrics, "overlay": drawing, "report": page}


def say(part: str, line: str) -> None:
    """A headline, after what the part before has printed."""
    sys.stderr.flush()
    print(f"\n{part}: {line}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("walkthrough"))
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    main(options.out, steps=options.steps)
