"""The main job in one go: images, COCO annotations and a detector -> caches, a trained head, a table and pictures.

`make demo` calls it: without arguments on pictures it draws itself, with the embedded detector; with
`make demo DETECTOR=.. WEIGHTS=.. IMAGES=.. ANNOTATIONS=..` on yours. Every step is a command that can be typed alone.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from loss_curve import draw as draw_loss
from make_shapes import write_set
from table import markdown

from featcache.errors import CacheError
from pipeline import cases, evaluate, extract, train
from pipeline.errors import PipelineError, UsageError
from pipeline.options import pairs
from pipeline.training.recipe import load_recipe, override

EMBEDDED = "shapes-tiny"
TRAIN_DRAWINGS, VAL_DRAWINGS = 200, 50
EMBEDDED_SETTINGS = {"steps": "400"}
"""In place of the head's own, which are for photographs."""
ASKED = """give all of these, or none of them to see the embedded detector on drawn pictures:

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
    given = [options.detector, options.images, options.annotations]
    if any(given) and not all(given):
        print(ASKED, file=sys.stderr)
        return 2
    if bool(options.val_images) != bool(options.val_annotations):
        print("VAL_IMAGES and VAL_ANNOTATIONS go together", file=sys.stderr)
        return 2
    try:
        settings = {**({} if any(given) else EMBEDDED_SETTINGS), **pairs(options.settings)}
        override(load_recipe(options.head), settings)  # a mistake in them is told before the first minutes of work
        if not any(given):
            _draw_sets(options)
        _run(options, settings)
    except (PipelineError, CacheError) as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _draw_sets(options: argparse.Namespace) -> None:
    """Pictures for the embedded detector, which never saw them."""
    _say(f"0/4  draw {TRAIN_DRAWINGS} + {VAL_DRAWINGS} pictures with exact masks")
    options.detector = EMBEDDED
    for name, count, seed in (("", TRAIN_DRAWINGS, 2), ("val_", VAL_DRAWINGS, 3)):
        folder = options.out / "shapes" / ("val" if name else "train")
        setattr(options, f"{name}annotations", write_set(folder, count, seed))
        setattr(options, f"{name}images", folder / "images")


def _run(options: argparse.Namespace, settings: dict[str, str]) -> None:
    out: Path = options.out
    started = time.monotonic()
    weights = Path(options.weights) if options.weights else None
    shared: dict[str, Any] = {"detector": options.detector, "weights": weights, "device": options.device}
    shared["limit"] = options.limit
    _say("1/4  extract: the detector runs once over the images, and over their mirror images")
    train_cache = extract.main(
        **shared,
        images=Path(options.images),
        annotations=Path(options.annotations),
        cache=out / "train-cache",
        views=("orig", "hflip"),
    )
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
    cases.main(cache=val_cache, run=run, out=out / "sheet.png")
    draw_loss(run, out / "loss.png")
    print(table)
    print(f"{out}/table.md, sheet.png, loss.png; {run}/metrics.json; {time.monotonic() - started:.0f} s in all")


def _say(line: str) -> None:
    print(f"\n{line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
