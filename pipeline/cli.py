"""`python -m pipeline VERB`: each verb is one call into the file of its name, which is when torch is imported."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from featcache.output import print_json, print_table
from featcache.spec import Codec

from . import cli_about, cli_results
from .cli_errors import ErrorGroup
from .data.views import KNOWN as KNOWN_VIEWS
from .errors import UsageError
from .options import CacheDir, Detector, Device, RunDir, Weights, check_once, names, pairs, seed

app = typer.Typer(
    cls=ErrorGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Instance masks from a frozen DETR detector: extract its features once, train any number of heads on them.

    \b
    Example:  python -m pipeline extract --help
    """,
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


@app.command()
def extract(
    detector: Detector,
    images: Annotated[Path, typer.Option(help="Folder of the image files.", metavar="DIR")],
    annotations: Annotated[Path, typer.Option(help="COCO instances JSON.", metavar="JSON")],
    cache: CacheDir,
    weights: Weights = None,
    panoptic: Annotated[
        Path | None,
        typer.Option(help="COCO panoptic JSON: stores segments for semantic and panoptic heads.", metavar="JSON"),
    ] = None,
    panoptic_images: Annotated[
        Path | None, typer.Option(help="Folder of its PNG files; that of its name beside it.", metavar="DIR")
    ] = None,
    codec: Annotated[Codec, typer.Option(help="How maps are stored.")] = "uint8",
    max_error: Annotated[
        float | None,
        typer.Option(
            help="Relative error that uint8 may add to save space; 0 always takes its 255 steps.", min=0, metavar="X"
        ),
    ] = None,
    c1_bands: Annotated[
        int | None,
        typer.Option(
            help="C1 in N bands of rows: training reads those under its boxes, where neck_path allows it.",
            min=1,
            metavar="N",
        ),
    ] = None,
    views: Annotated[str, typer.Option(help=f"Comma-separated: {KNOWN_VIEWS}.")] = "orig",
    limit: Annotated[
        int | None, typer.Option(help="Only the images with the lowest N ids.", min=1, metavar="N")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per detector call.", min=1)] = 8,
    device: Device = "cpu",
    shard: Annotated[str, typer.Option(help="Part I of N, into a cache of its own.", metavar="I/N")] = "1/1",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first image that cannot be read.")] = False,
) -> None:
    """Stage 1: COCO images -> frozen detector -> cache.

    Work already done is skipped: stop it with Ctrl-C, run the same command again and it goes on.

    \b
    Example:
    python -m pipeline extract --detector hdetr-r50 --weights r50.pth --images val --annotations val.json --cache val
    """
    from . import extract as stage

    print(
        stage.main(
            detector=detector,
            weights=weights,
            images=images,
            annotations=annotations,
            panoptic=panoptic,
            panoptic_images=panoptic_images,
            cache=cache,
            codec=codec,
            max_error=max_error,
            c1_bands=c1_bands,
            views=names(views),
            limit=limit,
            batch_size=batch_size,
            device=device,
            shard=stage.Shard.parse(shard),
            strict=strict,
        )
    )


@app.command()
def train(
    head: Annotated[
        str, typer.Option(help="A name from `python -m pipeline heads`, or a TOML file.", metavar="NAME|FILE")
    ],
    run: RunDir,
    cache: Annotated[Path | None, typer.Option(help="The feature cache; not with --live.", metavar="DIR")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Run the detector at each step, in place of a cache: several times slower.")
    ] = False,
    detector: Annotated[
        str | None, typer.Option(help="With --live, as for extract.", metavar="NAME|FILE|hf:DIR")
    ] = None,
    weights: Weights = None,
    images: Annotated[Path | None, typer.Option(help="With --live: folder of the images.", metavar="DIR")] = None,
    annotations: Annotated[Path | None, typer.Option(help="With --live: COCO instances.", metavar="JSON")] = None,
    val_cache: Annotated[
        Path | None,
        typer.Option(help="Evaluate on this cache at the end, and every evaluate_every=N steps.", metavar="DIR"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="In place of the head's own.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="In place of the head's own.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the head's own.")] = None,
    device: Device = "cpu",
    settings: Annotated[
        list[str] | None, typer.Argument(help="Fields of the head or its training.", metavar="[KEY=VALUE]...")
    ] = None,
) -> None:
    """Stage 2: cache -> trained mask head.

    The same command again continues a run that was stopped. With --live the detector itself gives the features, to
    compare, or to train it too: finetune=transformer or finetune=all.

    \b
    Examples:
    python -m pipeline train --cache train --val-cache val --head mask-frozen-detr --run runs/first --steps 1000 lr=3e-4
    python -m pipeline train --live --detector hdetr-r50 --weights r50.pth --images val2017 --annotations val.json \\
      --head mask-frozen-detr --run runs/whole finetune=all detection_weight=1
    """
    from . import train as stage
    from .evaluate import metrics_text

    inputs = stage.live_inputs(live, cache, detector, weights, images, annotations)
    print(
        stage.main(
            cache=cache,
            live=inputs,
            head=head,
            run=run,
            settings=pairs(settings, steps=steps, batch_size=batch_size, seed=seed),
            device=device,
            val_cache=val_cache,
        )
    )
    if val_cache is not None:
        print(metrics_text(stage.figures(run, val_cache, device)))


@app.command()
def evaluate(
    cache: CacheDir,
    run: RunDir,
    device: Device = "cpu",
    reference: Annotated[
        Literal["box", "oracle"] | None,
        typer.Option(help="In place of the head: boxes filled, or the best 32 x 32 masks the boxes can hold."),
    ] = None,
    holdout: Annotated[
        int, typer.Option(help="Only every n-th image, which training with holdout=n left out.", min=0, metavar="N")
    ] = 0,
    per_class: Annotated[bool, typer.Option("--per-class", help="AP of each class too, best first.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on where the head was trained on other features; warns.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="The best weights of a training with evaluate_every=N, not the last.")
    ] = False,
    views: Annotated[
        str,
        typer.Option(
            help="Average each mask over these views of the cache that show its box whole: hflip,crop1 or all.",
            metavar="NAMES",
        ),
    ] = "",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="AP after each layer of the decoder too, of heads that have one.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Draw the best and the worst images into this file; opens their pictures.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The content of RUN/metrics.json.")] = False,
) -> None:
    """Cache and run -> COCO AP of boxes and masks, and where AP is lost.

    Opens nothing else but for --sheet; writes RUN/metrics.json, results.json and boxes.json (which pycocotools reads;
    own_boxes.json too for heads that tell their own), quality.json (each image), and in RUN/metrics AP per class,
    precision over recall and lost AP, with --per-layer layers.json; heads for segments: segments.json and
    segment_quality.json. Boundary AP where faster-coco-eval is installed.

    --json prints metrics.json: segm and bbox, own_bbox and boundary where there are any, each with AP AP50 AP75 APs APm
    APl AR1 AR10 AR100 ARs ARm ARl (percent, null where undefined); mask_iou, matched, images; classes with --per-class,
    layers with --per-layer.

    \b
    Example:
    python -m pipeline evaluate --cache val --run runs/first
    """
    from . import cases, layer_ap
    from . import evaluate as stage

    if per_layer and (reference or force or best or views):
        raise UsageError("--per-layer goes with --cache, --run, --holdout and --device alone", "leave the others out")
    if sheet is not None:
        cases.check_sheet(cache, sheet)
    metrics = stage.main(
        cache=cache,
        run=run,
        device=device,
        reference=reference,
        holdout=holdout,
        force=force,
        best=best,
        views=names(views),
    )
    layers = layer_ap.main(cache=cache, run=run, holdout=holdout, device=device) if per_layer else []
    if sheet is not None:
        cases.main(cache=cache, run=run, out=sheet)
    if as_json:
        more = {"classes": stage.classes(run)} if per_class else {}
        print_json({**metrics, **more, **({"layers": layers} if per_layer else {})})
        return
    print(stage.metrics_text(metrics))
    print(stage.lost_in_words(run))
    if per_class:
        print_table(stage.class_table(run))
    if per_layer:
        print_table(layer_ap.table(layers))


@app.command()
def ablate(
    ablation: Annotated[
        str, typer.Argument(help="A table of configs/ablations, or a TOML file with rows.", metavar="TOML")
    ],
    cache: CacheDir,
    out: Annotated[Path, typer.Option(help="Gets table.md, table.csv, plot.png and a run per head.", metavar="DIR")],
    val_cache: Annotated[
        Path | None, typer.Option(help="Evaluate on this cache, not on what holdout=n left out.", metavar="DIR")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="In place of the heads' own, or a share of them.", metavar="N|P%")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Every head once for each, such as 0,1,2.", metavar="N,N..")] = None,
    batch_size: Annotated[int | None, typer.Option(help="In place of the heads' own.", min=1)] = None,
    device: Device = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show heads, parameters and passes; do nothing.")] = False,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Fields of the heads or their training.", metavar="[KEY=VALUE]...")
    ] = None,
) -> None:
    """Stage 2 for many heads: each image is read and decoded once, and every head takes its step on it.

    Heads of one batch size, view set, holdout and seed share a pass over the cache; with order_seed=0 the seeds share
    it too. The same command again goes on with what was stopped or has failed.

    \b
    Example:
    python -m pipeline ablate table02 --cache train --val-cache val --out ablations/table02 --steps 5% --seeds 0,1,2
    """
    from . import ablate as stage
    from .training.plan import overview

    given = pairs(settings, batch_size=batch_size)
    check_once(given, steps=steps, seeds=seeds)
    outcome = stage.main(
        ablation=ablation,
        cache=cache,
        out=out,
        val_cache=val_cache,
        steps=steps,
        seeds=[seed(word) for word in seeds.split(",")] if seeds else [],
        settings=given,
        device=device,
        dry_run=dry_run,
    )
    if dry_run:
        table, lines = overview(outcome.members)
        print_table(table)
        for line in lines:
            print(line)
        return
    print(outcome.table, end="")
    outcome.check()


app.add_typer(cli_results.app)
app.add_typer(cli_about.app)


def main() -> None:
    """Run the command line; never returns."""
    app(prog_name="python -m pipeline")
    sys.exit(0)
