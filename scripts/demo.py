"""The main job in one go: images, COCO annotations and a detector -> caches, a trained head, a table and overlays.

`make demo DETECTOR=.. WEIGHTS=.. IMAGES=.. ANNOTATIONS=..` calls it; every step is a command that can be typed alone.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from table import markdown

from featcache import Cache
from featcache.errors import CacheError
from pipeline import evaluate, extract, train
from pipeline.data.images import open_image
from pipeline.errors import PipelineError
from pipeline.masks.viz import sheet
from pipeline.predict import overlay

SHEET_IMAGES = 12
ASKED = """make demo needs a detector and images to learn from:

  make demo DETECTOR=deimv2-femto          a name (`python -m pipeline detectors`) or a TOML of yours
            WEIGHTS=model.onnx             its weights
            IMAGES=train2017               folder of images
            ANNOTATIONS=instances.json     their COCO annotations, with masks
            [VAL_IMAGES=val2017 VAL_ANNOTATIONS=instances_val.json]   without: every fifth image is held out
            [HEAD=unet] [OUT=demo] [DEVICE=cpu] [LIMIT=n] [SET='steps=500']"""


def main() -> int:
    """Parse, run, say what went wrong in one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("detector", "weights", "images", "annotations", "val-images", "val-annotations"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--head", default="unet")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args()
    if not all((options.detector, options.weights, options.images, options.annotations)):
        print(ASKED, file=sys.stderr)
        return 2
    if bool(options.val_images) != bool(options.val_annotations):
        print("VAL_IMAGES and VAL_ANNOTATIONS go together", file=sys.stderr)
        return 2
    try:
        _run(options)
    except (PipelineError, CacheError) as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    out: Path = options.out
    started = time.monotonic()
    shared: dict[str, Any] = {"detector": options.detector, "weights": Path(options.weights), "device": options.device}
    shared["limit"] = options.limit
    _say("1/4  extract: the detector runs once over the images, and over their mirror images")
    train_cache = extract.main(
        **shared,
        images=Path(options.images),
        annotations=Path(options.annotations),
        cache=out / "train-cache",
        views=("orig", "hflip"),
    )
    settings = dict(word.split("=", 1) for word in options.settings)
    holdout = 0
    if not options.val_images:
        holdout = int(settings.setdefault("holdout", "5"))
        val_cache = train_cache
    else:
        val_cache = extract.main(
            **shared,
            images=Path(options.val_images),
            annotations=Path(options.val_annotations),
            cache=out / "val-cache",
        )
    _say(f"2/4  train: head '{options.head}', from the cache alone")
    run = train.main(
        cache=train_cache, head=options.head, run=out / options.head, settings=settings, device=options.device
    )
    baseline = train.main(cache=train_cache, head="baseline", run=out / "baseline", device=options.device)
    _say("3/4  evaluate: the head, the parameter-free baseline, and what the boxes alone allow")
    on: dict[str, Any] = {"cache": val_cache, "holdout": holdout, "device": options.device}
    rows = {
        f"trained head '{options.head}'": evaluate.main(**on, run=run),
        "parameter-free baseline": evaluate.main(**on, run=baseline),
        "the box, filled": evaluate.main(**on, run=out / "box", reference="box"),
        "the best 32 x 32 mask in the box": evaluate.main(**on, run=out / "oracle", reference="oracle"),
    }
    table = markdown(rows)
    (out / "table.md").write_text(table)
    _say("4/4  draw")
    _draw(val_cache, run, out / "sheet.png")
    print(table)
    print(f"{out}/table.md, {out}/sheet.png, {run}/metrics.json, {time.monotonic() - started:.0f} s in all")


def _draw(cache: Path, run: Path, file: Path) -> None:
    """A sheet of the first images that were evaluated, from the results written beside the run."""
    opened = Cache(cache)
    by_image: dict[int, list[Any]] = {}
    for result in json.loads((run / "results.json").read_text()):
        by_image.setdefault(result["image_id"], []).append(result)
    categories: Any = opened.spec.recipe["categories"]
    folder = Path(str(opened.spec.recipe["images_folder"]))
    shown = [info for info in opened.images if info.id in by_image][:SHEET_IMAGES]
    drawn = [overlay(open_image(folder / info.file_name), by_image[info.id], categories, 0.4) for info in shown]
    sheet(drawn).save(file)


def _say(line: str) -> None:
    print(f"\n{line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
