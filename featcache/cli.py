"""The command `featcache`: each command is a thin shell over one library call. Results on stdout, the rest stderr."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import cli_change
from featcache.cli_errors import ErrorGroup
from featcache.disk import human_bytes
from featcache.options import AsJson, CachePath, ImageIds, Threads, View, id_list
from featcache.output import print_fields, print_json, print_table
from featcache.progress import clock

if TYPE_CHECKING:
    from featcache.checks import VerifyReport

app = typer.Typer(
    cls=ErrorGroup,
    name="featcache",
    help="""Look into, check and change caches of frozen-detector features.

    \b
    Example:  featcache info caches/val
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


MinScore = Annotated[float, typer.Option(help="Detections below this score do not count.", min=0, max=1)]


@app.command()
def info(path: CachePath, as_json: AsJson = False) -> None:
    """Say what a cache holds, what made it, how far it is and how large.

    \b
    Example:  featcache info caches/val
    """
    from featcache import summary

    data = summary.info(path)
    if as_json:
        return print_json(data)
    fields = {name: data[name] for name in ("path", "format_version", "fingerprint", "codec", "images")}
    if data["max_error"]:
        fields["codec"] = f"{data['codec']}, 255 steps or fewer within an error of {data['max_error']:.3g}"
    fields["done"] = ", ".join(f"{view} {count}/{data['images']}" for view, count in data["done"].items())
    fields["state"] = _state_words(data)
    fields |= {"annotations": data["annotations"], **data["further_truth"]}
    fields |= {"detections": f"{data['detections']} x {data['query_dim']}"}
    if data["bytes"] is not None:
        fields["size"] = f"{human_bytes(data['bytes'])} in {data['files']} files"
    if data["bytes_per_image"] is not None:
        fields["per image"] = human_bytes(data["bytes_per_image"])
    if data["ratio"] is not None:
        fields["ratio"] = f"{data['ratio']:.3f} of raw fp16 ({human_bytes(data['raw_fp16_bytes'])})"
    for part in ("source", "dataset"):
        fields |= {f"{part}.{name}": shorten(str(value), 100) for name, value in data[part].items()}
    fields["command"] = data["command"] or "not recorded"
    print_fields(fields)
    print()
    print_table([_level_row(level) for level in data["levels"]])


def _state_words(data: dict[str, Any]) -> str:
    if data["complete"]:
        return "complete"
    if data["writer"] is None and data["part_complete"]:
        first, stop = data["part"]
        return f"images {first} to {stop - 1}, its --shard, are complete: featcache merge joins the parts"
    if data["writer"] is None:
        return "unfinished, and no process writes it: the command below goes on"
    speed = data["images_per_second"]
    pace = f"{speed:.1f} images/s, ETA {clock(data['eta_seconds'])}" if speed else "no image yet"
    return f"being written by process {data['writer']['pid']} on {data['writer']['host']}: {pace}"


def _level_row(level: dict[str, Any]) -> dict[str, object]:
    row: dict[str, object] = {"level": level["name"], "stride": level["stride"], "channels": level["channels"]}
    row |= {"largest": f"{level['max_h']} x {level['max_w']}", "dtype": level["dtype"], "codec": level["codec"]}
    row["bytes"] = "-" if level["bytes"] is None else human_bytes(level["bytes"])
    row["ratio"] = "-" if level["ratio"] is None else f"{level['ratio']:.3f}"
    return {**row, "delta": _delta_words(level["delta"])}


def _delta_words(delta: dict[str, bool | None]) -> str:
    return ", ".join(f"{view} {'unknown' if used is None else 'yes' if used else 'no'}" for view, used in delta.items())


@app.command("ls")
def list_images(
    path: CachePath,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="'FIELD>N'", help="Only images with that; may be given again."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Order by a field; -FIELD has the greatest first.")
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only images that are not extracted.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    min_score: MinScore = 0.3,
    as_json: AsJson = False,
) -> None:
    """List the images of a cache, one line each.

    Operators: = != < <= > >=, and ~ for "contains". boxes counts the detections above --min-score, score is the best.

    \b
    Example:  featcache ls caches/val --filter 'boxes>10' --filter 'categories~dog' --sort -annotations --limit 5
    """
    from featcache.header import read_header
    from featcache.listing import field_names, image_rows
    from featcache.select import chosen

    first = None if filters or sort else limit  # nothing chooses among the others
    rows = image_rows(path, missing=missing, min_score=min_score, limit=first)
    fields = field_names(read_header(path).spec.views)
    rows = chosen(rows, filters or [], fields=fields, sort=sort, limit=limit)
    if as_json:
        return print_json(rows)
    if not rows:
        typer.echo("no such image", err=True)
    print_table([{**row, "categories": shorten(", ".join(row["categories"]), 40, placeholder=" ..")} for row in rows])


@app.command()
def show(
    path: CachePath,
    image_id: Annotated[int, typer.Argument(metavar="IMAGE_ID", help="Image id, as in the annotations.")],
    out: Annotated[Path | None, typer.Option(help="Draw picture, boxes and maps into this file.")] = None,
    view: View = None,
    min_score: MinScore = 0.3,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures, if not where they were.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one image: detections, annotations, range of every map; with --out also drawn.

    \b
    Example:  featcache show caches/val 139 --out 139.png
    """
    from featcache import show as drawing
    from featcache.reader import Cache

    if out is not None:
        drawing.check_ending(out)
    elif images is not None:
        raise typer.BadParameter("the pictures are for the drawing: name its file with --out", param_hint="--images")
    cache = Cache(path)
    entry = cache.image(image_id, view)
    picture = None if out is None else drawing.picture_of(cache, entry, images)
    data = drawing.summary(cache, entry, min_score)
    if out is not None:
        if picture is None:
            typer.echo("warning: the picture is not where it was, so maps are drawn alone (--images FOLDER)", err=True)
        drawing.sheet(entry, data, picture, min_score).save(out)
        data["out"] = str(out)
    if as_json:
        return print_json(data)
    tables = ("detections", "annotations", "maps")
    print_fields({name: value for name, value in data.items() if name not in tables})
    for name in tables:
        print(f"\n{name}")
        print_table(data[name])


@app.command()
def verify(
    path: CachePath,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte: checksums and decoding.")] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mark what is damaged as not done, so that the command named does it again."),
    ] = False,
    images: ImageIds = None,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Check a cache. Names every damaged image and level, and the command that repairs them; then exits with 1.

    \b
    Example:  featcache verify caches/val --deep
    """
    from featcache import checks
    from featcache.reader import Cache

    report = checks.verify(path, deep=deep, image_ids=id_list(images), threads=threads)
    marked = checks.mark_damaged(Path(path), report.damage) if repair and report.damage else 0
    command = checks.repair_command(Cache(path), report, marked=marked > 0) if report.damage else None
    if as_json:
        print_json({"good": report.good, **vars(report), "marked": marked, "repair": command})
    else:
        _print_verify(report, marked, command)
    if report.problems or (report.damage and not marked):
        raise typer.Exit(1)


def _print_verify(report: VerifyReport, marked: int, command: str | None) -> None:
    for problem in report.problems:
        print(problem)
    for item in report.damage:
        print(f"damaged: image {item.image_id}, view {item.view}, {item.level}: {item.what}")
    kind = "every byte" if report.deep else "flags, shapes and files"
    done = ", ".join(f"{view} {count}/{report.images}" for view, count in report.done.items())
    print(f"checked {kind} of {report.checked} images: {'good' if report.good else 'NOT good'}  (done: {done})")
    if marked:
        print(f"marked {marked} as not done; now this does them again:\n  {command}")
    elif command:
        print(f"repair:  {command}")
    if report.remedy:
        print(f"remedy:  {report.remedy}")


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    atol: Annotated[float, typer.Option(min=0, help="Largest absolute difference of values to accept.")] = 0.0,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Compare two caches: what made them, which images they hold, their values. Exits with 1 if anything differs.

    \b
    Example:  featcache diff caches/uint8 caches/fp16 --atol 0.05
    """
    from featcache import checks
    from featcache.reader import Cache

    report = checks.diff(Cache(a), Cache(b), atol=atol, threads=threads)
    if as_json:
        print_json({"equal": report.equal, **vars(report)})
    else:
        for name, mine, theirs in report.identity:
            print(f"{name}: {mine!r} in A, {theirs!r} in B")
        for label, pairs in (("A", report.only_in_a), ("B", report.only_in_b)):
            for image_id, view in pairs:
                print(f"only in {label}: image {image_id}, view {view}")
        for item in report.values:
            print(f"image {item.image_id}, view {item.view}, {item.part}: differs by up to {item.max_abs:.6g}")
        print(f"compared {report.compared} images: {'equal' if report.equal else 'NOT equal'}")
    if not report.equal:
        raise typer.Exit(1)


app.add_typer(cli_change.app)


def main() -> None:
    """Run the command line; never returns."""
    # Typer reads arguments by pydantic, which would look through all installed packages for plugins of its own: a tenth
    # of the time of `info`.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    app(prog_name=ErrorGroup.program)
    sys.exit(0)
