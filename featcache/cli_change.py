"""The commands that measure a cache to come or make a new one out of others: estimate, stats, copy, merge, prune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.disk import human_bytes
from featcache.options import AsJson, CachePath, ImageIds, Threads, View, id_list, name_list
from featcache.output import print_fields, print_json, print_table
from featcache.spec import Codec

if TYPE_CHECKING:
    from featcache.maintain import Plan

app = typer.Typer(rich_markup_mode=None)

Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Directory of the new cache.")]
CodecName = Annotated[Codec | None, typer.Option("--codec", help="The same by default.")]
MaxError = Annotated[
    float | None,
    typer.Option(
        min=0, help="Relative error that uint8 may add to save space; 0 always takes its 255 steps.", metavar="X"
    ),
]
Shard = Annotated[int | None, typer.Option(min=1, help="Images per file; the same by default.")]
Levels = Annotated[str | None, typer.Option(help="Only these levels, comma-separated.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be written.")]


@app.command()
def estimate(
    path: CachePath,
    images: Annotated[int, typer.Option(min=1, help="Images of the cache to come.")],
    codec: CodecName = None,
    max_error: MaxError = None,
    shard: Annotated[int | None, typer.Option(min=1, help="Images per file; as extract does by default.")] = None,
    at: Annotated[Path, typer.Option(help="Directory where it is to be written.")] = Path(),
    probe: Annotated[bool, typer.Option(help="Measure the writing speed there.")] = True,
    as_json: AsJson = False,
) -> None:
    """Predict size and writing time of a large cache from a small one (extract it with --limit 100 --codec none).

    \b
    Example:  featcache estimate caches/sample --images 118287 --codec uint8 --at /data
    """
    from featcache import sizes
    from featcache.reader import Cache

    found = sizes.estimate(Cache(path), images, codec=codec, max_error=max_error, shard=shard, at=at, probe=probe)
    if as_json:
        print_json({**vars(found), "fits": found.fits})
    else:
        fields: dict[str, object] = {
            "images": f"{found.images} in {found.views} views",
            "codec": f"{found.codec}, {found.shard} images a file",
            "per image": human_bytes(found.bytes_per_image),
            "total": f"{human_bytes(found.total_bytes)} in {found.files} files",
            "free": human_bytes(found.free_bytes),
        }
        if found.images_per_second is not None:
            fields["writing"] = f"{found.images_per_second:.1f} images/s with flushing, {found.hours:.2g} hours"
        print_fields(fields)
    if not found.fits:
        typer.echo(f"warning: that is more than {sizes.WARN_FRACTION:.0%} of the free space", err=True)


@app.command()
def stats(
    path: CachePath,
    view: View = None,
    images: ImageIds = None,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Least, greatest, mean and deviation of the values of every level, share of zeros, histogram.

    \b
    Example:  featcache stats caches/val
    """
    from featcache.reader import Cache
    from featcache.stats import level_statistics, sparkline

    found = level_statistics(Cache(path), view=view, image_ids=id_list(images), threads=threads)
    if as_json:
        return print_json(found)
    print_table([{"level": name, **row, "histogram": sparkline(row["histogram"])} for name, row in found.items()])


@app.command()
def copy(
    path: CachePath,
    target: Target,
    codec: CodecName = None,
    max_error: MaxError = None,
    shard: Shard = None,
    levels: Levels = None,
    views: Annotated[str | None, typer.Option(help="Only these views, comma-separated.")] = None,
    images: ImageIds = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Only what TARGET, a copy made before, lacks; all else is as it is there.")
    ] = False,
    dry_run: DryRun = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Copy a cache: all of it or some images, views or levels; in the same or another codec.

    \b
    Example:  featcache copy caches/train caches/small --levels c1,e16 --codec fp16
    """
    from featcache import maintain
    from featcache.reader import Cache

    if missing:
        if any(option is not None for option in (codec, max_error, shard, levels, views, images)):
            raise typer.BadParameter("--missing takes codec, shard, levels, views and images from TARGET")
        return _carry_out(maintain.plan_missing(Cache(path), Cache(target)), dry_run, threads, as_json)
    plan = maintain.plan_copy(
        Cache(path),
        target,
        codec=codec,
        max_error=max_error,
        shard=shard,
        levels=name_list(levels),
        views=name_list(views),
        image_ids=id_list(images),
    )
    _carry_out(plan, dry_run, threads, as_json)


@app.command()
def merge(
    parts: Annotated[list[str], typer.Argument(metavar="PART...", help="Caches of the parts of one extraction.")],
    into: Annotated[Path, typer.Option(help="Directory of the new cache.")],
    shard: Shard = None,
    dry_run: DryRun = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Join the caches that several machines made with extract --shard I/N.

    \b
    Example:  featcache merge caches/part1 caches/part2 --into caches/train
    """
    from featcache import maintain
    from featcache.reader import Cache

    plan = maintain.plan_merge([Cache(part) for part in parts], into, shard=shard)
    _carry_out(plan, dry_run, threads, as_json)


@app.command()
def prune(
    path: Annotated[Path, typer.Argument(metavar="CACHE", help="Cache directory.")],
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Drop images that a view does not have.")] = False,
    levels: Levels = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Drop unfinished images, or all levels but some, for good. Needs space for the new cache beside the old.

    \b
    Example:  featcache prune caches/train --levels c1,e16 --dry-run
    """
    from featcache import prune as pruning

    if not (unfinished or levels):
        raise typer.BadParameter("say what to drop: --unfinished, --levels or both")
    names = name_list(levels)
    plan = pruning.plan_prune(path, levels=names, unfinished=unfinished)
    if not dry_run:
        if not yes:
            typer.confirm(f"Replace {path} by a cache of {len(plan.images)} images?", abort=True, err=True)
        pruning.prune(path, levels=names, unfinished=unfinished, threads=threads)
    _print_plan(plan, dry_run, as_json)


def _carry_out(plan: Plan, dry_run: bool, threads: int, as_json: bool) -> None:
    from featcache import maintain

    if not dry_run:
        maintain.run(plan, threads=threads)
    _print_plan(plan, dry_run, as_json)


def _print_plan(plan: Plan, dry_run: bool, as_json: bool) -> None:
    data = {"dry_run": dry_run, **plan.summary()}
    print_json(data) if as_json else print_fields(data)
