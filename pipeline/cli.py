"""`python -m pipeline VERB`: each verb is one call into the file of its name, which is when torch is imported."""

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from featcache.errors import CacheError
from featcache.output import print_json, print_table

from .errors import PipelineError, UsageError


class _Group(TyperGroup):
    """Prints errors as one sentence and a hint; the status is 1, or 2 for misuse. `--debug` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if type(error).__module__.partition(".")[0] in (
                "typer",
                "click",
            ):  # exits and misuse, which Typer prints itself
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            message, hint = _in_words(error)
            typer.echo(f"error: {message}", err=True)
            if hint:
                typer.echo(f"hint: {hint}", err=True)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None


def _in_words(error: Exception) -> tuple[str, str]:
    if isinstance(error, PipelineError | CacheError):
        return error.message, error.hint
    return f"unexpected {type(error).__name__}: {error}", "python -m pipeline --debug ... shows where"


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Instance masks from a frozen DETR detector: extract its features once, train any number of heads on them.",
)

Detector = Annotated[
    str,
    typer.Option(
        help="A name from `detectors`, a TOML file, or hf: and a folder or hub id.", metavar="NAME|FILE|hf:DIR"
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="The detector's weights; not for one that brings its own.", metavar="FILE")
]
CacheDir = Annotated[Path, typer.Option(help="The feature cache.", metavar="DIR")]
RunDir = Annotated[Path, typer.Option(help="The run: settings, checkpoint, metrics of one head.", metavar="DIR")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]


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
    codec: Annotated[Literal["uint8", "fp16", "none"], typer.Option(help="How maps are stored.")] = "uint8",
    views: Annotated[str, typer.Option(help="Comma-separated: orig, hflip.")] = "orig",
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

    python -m pipeline extract --detector deimv2-femto --weights femto.onnx --images val2017 --annotations val.json
    --cache val
    """
    from . import extract as stage

    print(
        stage.main(
            detector=detector,
            weights=weights,
            images=images,
            annotations=annotations,
            cache=cache,
            codec=codec,
            views=[view.strip() for view in views.split(",")],
            limit=limit,
            batch_size=batch_size,
            device=device,
            shard=stage.Shard.parse(shard),
            strict=strict,
        )
    )


@app.command()
def train(
    cache: CacheDir,
    head: Annotated[
        str, typer.Option(help="A name from `python -m pipeline heads`, or a TOML file.", metavar="NAME|FILE")
    ],
    run: RunDir,
    val_cache: Annotated[Path | None, typer.Option(help="Evaluate on this cache at the end.", metavar="DIR")] = None,
    steps: Annotated[int | None, typer.Option(help="In place of the head's own.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="In place of the head's own.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the head's own.")] = None,
    device: Device = "cpu",
    settings: Annotated[
        list[str] | None, typer.Argument(help="Fields of the head or its training.", metavar="[KEY=VALUE]...")
    ] = None,
) -> None:
    """Stage 2: cache -> trained mask head.

    The same command again continues a run that was stopped.

    python -m pipeline train --cache train --val-cache val --head mask-frozen-detr --run runs/first --steps 1000 lr=3e-4
    """
    from . import evaluate as evaluation
    from . import train as stage

    options = {"steps": steps, "batch_size": batch_size, "seed": seed}
    given = {key: str(value) for key, value in options.items() if value is not None}
    print(stage.main(cache=cache, head=head, run=run, settings={**_pairs(settings or []), **given}, device=device))
    if val_cache is not None:
        print(_table(evaluation.main(cache=val_cache, run=run, device=device)))


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
) -> None:
    """Cache and run -> COCO AP of boxes and masks.

    Opens nothing else; writes RUN/metrics.json and RUN/results.json.

    python -m pipeline evaluate --cache val --run runs/first
    """
    from . import evaluate as stage

    print(_table(stage.main(cache=cache, run=run, device=device, reference=reference, holdout=holdout)))


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

    python -m pipeline ablate table02 --cache train --val-cache val --out ablations/table02 --steps 5% --seeds 0,1,2
    """
    from . import ablate as stage
    from .data.sources import Cached
    from .training.plan import overview, plan

    given = {**_pairs(settings or []), **({} if batch_size is None else {"batch_size": str(batch_size)})}
    numbers = [_seed(word) for word in seeds.split(",")] if seeds else []
    if dry_run:
        planned = plan(ablation, Cached(cache, device), out, steps=steps, seeds=numbers, settings=given)
        table, lines = overview(planned[1])
        print_table(table)
        for line in lines:
            print(line)
        return
    outcome = stage.main(
        ablation=ablation, cache=cache, out=out, val_cache=val_cache, steps=steps, seeds=numbers, settings=given,
        device=device,
    )  # fmt: skip
    print(outcome.table, end="")
    outcome.check()


@app.command()
def predict(
    detector: Detector,
    run: RunDir,
    images: Annotated[str, typer.Option(help="A folder, a quoted glob pattern or one file.", metavar="PATH")],
    out: Annotated[Path, typer.Option(help="Gets overlays/, sheet.jpg, results.json, images.json.", metavar="DIR")],
    weights: Weights = None,
    min_score: Annotated[float, typer.Option(help="Masks below are not drawn.", min=0, max=1)] = 0.4,
    device: Device = "cpu",
) -> None:
    """New images -> masks: overlays and COCO JSON.

    python -m pipeline predict --detector deimv2-femto --weights femto.onnx --run runs/first --images photos --out masks
    """
    from . import predict as stage

    print(
        stage.main(
            detector=detector, weights=weights, run=run, images=images, out=out, min_score=min_score, device=device
        )
    )


@app.command()
def detectors(
    as_json: Annotated[
        bool, typer.Option("--json", help="As a JSON list; sizes and AP that nobody told are null.")
    ] = False,
) -> None:
    """The detectors that come with the package; any DETR in a TOML of yours, or hf:DIR, works too.

    AP is the published box AP on COCO val2017 of the named weights; (in the package) needs no --weights.

    python -m pipeline detectors
    """
    from .detectors.listing import list_detectors

    cards = list_detectors()
    if as_json:
        print_json(cards)
        return
    print_table(
        [
            {
                "name": card.name,
                "backbone": card.backbone or "-",
                "levels": " ".join(card.levels),
                "queries": card.queries or "-",
                "params": "-" if card.parameters is None else f"{card.parameters / 1e6:.2f} M",
                "box AP": "-" if card.box_ap is None else f"{card.box_ap:.1f}",
                "weights": (card.weights or "-") + (" (in the package)" if card.embedded else ""),
            }
            for card in cards
        ]
    )


@app.command()
def heads() -> None:
    """The mask heads that come with the package.

    python -m pipeline heads
    """
    from .config import shipped
    from .training.recipe import load_recipe

    for name in shipped("heads"):
        print(f"{name:20} {load_recipe(name).about}")


@app.command()
def describe(
    head: Annotated[str | None, typer.Option(help="A named head or a TOML file.", metavar="NAME|FILE")] = None,
    ablation: Annotated[
        str | None, typer.Option(help="In place of --head: all rows of an ablation.", metavar="NAME|FILE")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(help="At whose widths; hdetr-r50, or what the ablation says.", metavar="NAME|FILE|hf:DIR"),
    ] = None,
    weights: Weights = None,
    cache: Annotated[
        Path | None, typer.Option(help="In place of --detector: at the widths of a cache.", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object, or a list of them, with exact numbers.")] = False,
    settings: Annotated[list[str] | None, typer.Argument(help="Fields of the head.", metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Parameters and multiply-adds of a head, part by part, for one image of COCO's mean size.

    What a paper says of a row of an ablation stands beside it. Needs no weights and no image, unless the detector is an
    ONNX export, whose widths its --weights tell.

    python -m pipeline describe --head mask-frozen-detr --detector hdetr-swin-l hidden=96

    python -m pipeline describe --ablation table04
    """
    from . import describe as stage

    if (head is None) == (ablation is None):
        raise UsageError("describe takes a head or an ablation", "give --head or --ablation")
    if cache is not None and detector is not None:
        raise UsageError("the cache tells the widths already", "give --cache or --detector")
    if ablation is not None:
        if settings:
            raise UsageError("settings change one head", "give --head with them, or write them into the ablation")
        rows = stage.describe_ablation(ablation=ablation, detector=detector, weights=weights, cache=cache)
        if as_json:
            print_json([description for description, _ in rows])
        else:
            print_table(stage.comparison(rows))
    elif head is not None:
        changes = _pairs(settings or [])
        found = stage.main(head=head, settings=changes, detector=detector, weights=weights, cache=cache)
        if as_json:
            print_json(found)
        else:
            print_table(stage.parts_table(found))


def _pairs(settings: list[str]) -> dict[str, str]:
    """`key=value` words as a table."""
    for word in settings:
        if "=" not in word:
            raise UsageError(f"'{word}' is not KEY=VALUE", "such as lr=3e-4")
    return {key: value for key, _, value in (word.partition("=") for word in settings)}


def _seed(word: str) -> int:
    if not word.strip().isdigit():
        raise UsageError(f"--seeds has '{word}', which is no number", "such as --seeds 0,1,2")
    return int(word)


def _table(metrics: dict[str, Any]) -> str:
    """The figures as papers print them."""
    names = list(metrics["segm"])
    rows = [f"{'':5}" + "".join(f"{name:>7}" for name in names)]
    for kind in ("bbox", "segm"):
        values = ["-" if value is None else f"{value:.1f}" for value in metrics[kind].values()]
        rows.append(f"{kind:5}" + "".join(f"{value:>7}" for value in values))
    if metrics["mask_iou"] is not None:
        rows.append(f"mask IoU in the box {metrics['mask_iou']:.3f}, mean of {metrics['matched']} matched detections")
    return "\n".join(rows)


def main() -> None:
    """Run the command line; never returns."""
    app(prog_name="python -m pipeline")
    sys.exit(0)
