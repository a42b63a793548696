"""What a run is good for: predict, report, export, tensorboard."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from featcache.output import print_json

from .options import Detector, Device, RunDir, Weights, names

app = typer.Typer(rich_markup_mode=None)


@app.command()
def predict(
    detector: Detector,
    run: RunDir,
    images: Annotated[str, typer.Option(help="A folder, a quoted glob pattern or one file.", metavar="PATH")],
    out: Annotated[Path, typer.Option(help="Gets overlays/, sheet.jpg, results.json, images.json.", metavar="DIR")],
    weights: Weights = None,
    min_score: Annotated[float, typer.Option(help="Masks below are not drawn.", min=0, max=1)] = 0.4,
    views: Annotated[
        str,
        typer.Option(
            help="Average each mask over these views of the image that show its box whole: hflip,crop1,crop2.",
            metavar="NAMES",
        ),
    ] = "",
    device: Device = "cpu",
) -> None:
    """New images -> masks: overlays and COCO JSON.

    \b
    Example:
    python -m pipeline predict --detector hdetr-r50 --weights r50.pth --run runs/first --images photos --out masks
    """
    from . import predict as stage

    print(
        stage.main(
            detector=detector,
            weights=weights,
            run=run,
            images=images,
            out=out,
            min_score=min_score,
            views=names(views),
            device=device,
        )
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, side by side.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="The page.", metavar="FILE")] = Path("report.html"),
    cache: Annotated[
        Path | None,
        typer.Option(help="What the runs were evaluated on: tells its size, shows the images.", metavar="DIR"),
    ] = None,
    count: Annotated[int, typer.Option(help="Images among the best, and as many among the worst.", min=1)] = 4,
) -> None:
    """Runs -> one HTML page that needs nothing else: AP, where AP is lost, curves, cost, best and worst images.

    \b
    Example:
    python -m pipeline report runs/first runs/second --cache val --out report.html
    """
    from . import report as stage

    print(stage.main(runs=runs, out=out, cache=cache, count=count))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A trained run.", metavar="RUN")],
    cache: Annotated[
        Path, typer.Option(help="Of the features it was trained on; the files are checked on it.", metavar="DIR")
    ],
    out: Annotated[Path, typer.Option(help="Gets head.pt2, head.onnx, inputs.json.", metavar="DIR")],
    form: Annotated[Literal["pt2", "onnx"] | None, typer.Option("--format", help="Only this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects, one per file.")] = False,
) -> None:
    """Trained head -> torch.export and ONNX: maps, boxes, queries in, mask logits out.

    Each file is run on images of the cache and fails where it differs from the head by more than 1e-4. Keys of --json:
    file, difference (largest, absolute), checks, free_maps (whether maps of any size are taken).

    \b
    Example:
    python -m pipeline export runs/first --cache val --out exported
    """
    from . import export as stage

    exported = stage.main(cache=cache, run=run, out=out, formats=[form] if form else list(stage.FILES))
    if as_json:
        print_json([{**vars(one), "file": str(one.file)} for one in exported])
        return
    for one in exported:
        sizes = "any" if one.free_maps else "of this cache's first image only"
        print(f"{one.file}  largest difference {one.difference:.1e} in {one.checks} checks, map sizes: {sizes}")


@app.command()
def tensorboard(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")],
) -> None:
    """Runs -> event files in RUN/tensorboard, with the numbers of metrics.jsonl.

    Again for what a training has written since. Needs pip install 'featcache[tensorboard]'; `report` needs nothing.

    \b
    Example:
    python -m pipeline tensorboard runs/first runs/second
    """
    from . import tensorboard as stage

    for folder in stage.main(runs=runs):
        print(folder)
