"""The commands that tell what there is and run nothing: detectors, heads, describe."""

from pathlib import Path
from typing import Annotated

import typer

from featcache.output import print_json, print_table

from .errors import UsageError
from .options import Weights, pairs

app = typer.Typer(rich_markup_mode=None)


@app.command()
def detectors(
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects; what nobody told is null.")] = False,
) -> None:
    """The detectors that come with the package; any DETR in a TOML of yours, or hf:DIR, works too.

    AP is the published box AP on COCO val2017 of the named weights; (in the package) needs no --weights. Keys of
    --json: name, kind, summary, backbone, levels, queries, parameters, weights, embedded, box_ap.

    \b
    Example:
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
def heads(as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False) -> None:
    """The mask heads that come with the package.

    Keys of --json: name, family, about.

    \b
    Example:
    python -m pipeline heads
    """
    from .config import shipped
    from .training.recipe import load_recipe

    recipes = [load_recipe(name) for name in shipped("heads")]
    if as_json:
        print_json([{"name": recipe.name, "family": recipe.family, "about": recipe.about} for recipe in recipes])
        return
    for recipe in recipes:
        print(f"{recipe.name:20} {recipe.about}")


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
    ONNX export, whose widths its --weights tell. Keys of --json: name, params, macs, and parts, by name, with params
    and macs.

    \b
    Examples:
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
        changes = pairs(settings)
        found = stage.main(head=head, settings=changes, detector=detector, weights=weights, cache=cache)
        if as_json:
            print_json(found)
        else:
            print_table(stage.parts_table(found))
