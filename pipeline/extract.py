"""Stage 1: COCO images -> frozen detector -> cache. Done work is skipped: the same command again goes on."""

import os
import platform
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featcache import CacheSpec, CacheWriter, LevelSpec
from featcache.progress import Progress, written
from featcache.spec import MAX_ERROR, Codec, check_max_error

from .data.coco import CocoSet, load_coco
from .data.decode import decode_ahead, plan_batches
from .data.images import UnreadableImageError, several_unreadable
from .data.panoptic import CATEGORIES, PANOPTIC, SHA256, PanopticSet, load_panoptic
from .data.views import check_view
from .detectors.base import FrozenDetector, source_of
from .detectors.device import host_threads, tell_unused_gpu
from .detectors.registry import absolute_name, build_detector
from .errors import PipelineError, UsageError
from .files import check_folder
from .handover import Handover
from .interrupt import noted_interrupt


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count` (from 1) of a data set, each for a cache of its own; `featcache merge` joins them."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From `I/N`."""
        number, _, count = text.partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
            raise UsageError(f"shard is '{text}'", "expected I/N with 1 <= I <= N, such as --shard 2/8")
        return cls(int(number), int(count))

    def slice(self, images: int) -> range:
        """Its indices among so many images: neighbours, so that no file of the cache is shared between parts."""
        return range(images * (self.number - 1) // self.count, images * self.number // self.count)


ALL = Shard()


def main(
    *,
    detector: str,
    weights: Path | None = None,
    images: Path,
    annotations: Path,
    cache: Path,
    codec: Codec = "uint8",
    max_error: float | None = None,
    c1_bands: int | None = None,
    views: Sequence[str] = ("orig",),
    limit: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    shard: Shard = ALL,
    strict: bool = False,
    panoptic: Path | None = None,
    panoptic_images: Path | None = None,
) -> Path:
    """Fill the cache directory with the features of every image in every view; returns it.

    `max_error` is the error that codec uint8 may add to save space (`featcache/steps.py`), MAX_ERROR by default, 0 to
    switch that off. `c1_bands` stores C1 in so many bands of rows: trainings can read those under their boxes alone.
    `panoptic`, COCO's panoptic JSON of these images, stores segments too, for semantic and panoptic heads; its PNG
    files are in `panoptic_images`, by default the folder of its name beside it.
    `weights` may be None for a detector that brings its own, the embedded one or `hf:...`.
    Images that cannot be read are left out and listed in the UnreadableImageError raised at the end (with `strict`, the
    first one stops the run). Ctrl-C finishes the batch in hand and raises PipelineError.
    """
    for view in views:
        check_view(view)
    check_max_error(codec, max_error)
    check_folder(cache, "--cache")
    if panoptic_images is not None and panoptic is None:
        raise UsageError("--panoptic-images goes with --panoptic, which tells what is in them", "add --panoptic JSON")
    tell_unused_gpu(device)
    model = build_detector(detector, weights, device=device)
    coco = load_coco(annotations, images, limit)
    check_categories(model, coco)
    segments = None if panoptic is None else load_panoptic(panoptic, panoptic_images, coco.images)
    command = shell_command(
        detector=absolute_name(detector),
        weights=os.path.abspath(weights) if weights is not None else None,
        images=os.path.abspath(images),
        annotations=os.path.abspath(annotations),
        panoptic=os.path.abspath(panoptic) if panoptic is not None else None,
        panoptic_images=os.path.abspath(panoptic_images) if panoptic_images is not None else None,
        cache=os.path.abspath(cache),
        codec=codec,
        max_error=max_error,
        c1_bands=c1_bands,
        views=",".join(views),
        limit=limit,
        shard=f"{shard.number}/{shard.count}" if shard != ALL else None,
    )
    error = MAX_ERROR if max_error is None else max_error
    spec = cache_spec(model, coco, codec, views, command, max_error=error, c1_bands=c1_bands, panoptic=segments)
    mine = shard.slice(len(coco.images))
    if shard != ALL:  # for `featcache info`
        spec = replace(spec, recipe={**spec.recipe, "part": [mine.start, mine.stop]})
    further = {} if segments is None else {PANOPTIC: lambda: segments.segments(coco.images)}
    threads = host_threads(device)
    with CacheWriter(cache, spec, coco.images, coco.ground_truth, further_truth=further, threads=threads) as writer:
        todo = {view: [i for i in writer.pending(view) if i in mine] for view in views}
        unreadable = extract_batches(model, coco, writer, todo, batch_size, strict, threads=threads)
    if unreadable:
        raise several_unreadable(unreadable, "repair them and run the same command again: it does only what is missing")
    return cache


def shell_command(**options: object) -> str:
    """The command line of an extraction, to be run again from any folder; options that are None stay out."""
    words = [
        word
        for name, value in options.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return shlex.join(["python", "-m", "pipeline", "extract", *words])


def cache_spec(
    model: FrozenDetector,
    coco: CocoSet,
    codec: Codec,
    views: Sequence[str],
    command: str = "",
    *,
    max_error: float = MAX_ERROR,
    c1_bands: int | None = None,
    panoptic: PanopticSet | None = None,
) -> CacheSpec:
    """What the cache of this detector on these images holds; `command` is what filled it."""
    dataset = {"annotations_sha256": coco.sha256, "images": len(coco.images), "image_ids": coco.digest()}
    recipe: dict[str, object] = {"categories": list(coco.categories)}
    if panoptic is not None:
        dataset[SHA256] = panoptic.sha256
        recipe[CATEGORIES] = list(panoptic.categories)
    return CacheSpec(
        levels=tuple(_c1_level(level, c1_bands) if level.name == "c1" else level for level in model.levels),
        detections=model.detections,
        query_dim=model.query_dim,
        codec=codec,
        max_error=max_error,
        views=tuple(views),
        source=source_of(model),
        dataset=dataset,
        recipe={
            **recipe,
            "images_folder": os.path.abspath(coco.folder) if coco.folder else None,
            "command": command,
            "versions": _versions(),
        },
        further_truth=() if panoptic is None else (PANOPTIC,),
    )


def _c1_level(level: LevelSpec, bands: int | None) -> LevelSpec:
    """With moments for the heads' neck, and in bands where asked for."""
    rows = None if bands is None or bands == 1 else -(-level.max_hw[0] // bands)
    return replace(level, moments=True, band_rows=rows)


def check_categories(model: FrozenDetector, coco: CocoSet) -> None:
    """Refuse a detector whose labels are not the categories of the annotations."""
    ids = tuple(category["id"] for category in coco.categories)
    if model.category_ids is not None and model.category_ids != ids:
        strange = sorted(set(ids) ^ set(model.category_ids))
        raise PipelineError(
            f"'{model.name}' and the annotations do not have the same categories; only one of them has {strange[:10]}",
            "check `classes` in the detector's TOML against `categories` in the annotations",
        )
    if model.classes != len(ids):
        raise PipelineError(
            f"'{model.name}' gives {model.classes} classes, the annotations have {len(ids)} categories",
            "use annotations with the categories the detector was trained on, in the same order of ids",
        )
    names = [category["name"].casefold() for category in coco.categories]
    known = [name.casefold() for name in model.category_names or ()]
    # Names in another language or of another edition say nothing; the same names in another order are wrong labels.
    if known != names and sorted(known) == sorted(names):
        label = next(label for label, pair in enumerate(zip(known, names, strict=True)) if pair[0] != pair[1])
        raise PipelineError(
            f"label {label} of '{model.name}' is '{known[label]}', category {ids[label]} of the annotations is "
            f"'{names[label]}': the same categories in another order",
            "number the categories of the annotations by increasing id in the detector's order",
        )


def extract_batches(
    model: FrozenDetector,
    coco: CocoSet,
    writer: CacheWriter,
    todo: dict[str, list[int]],
    batch_size: int,
    strict: bool,
    *,
    threads: int,
) -> list[UnreadableImageError]:
    """Detect and write what is to do; returns an error for each image that could not be read.

    threads: that decode images ahead.
    """
    unreadable: dict[int, UnreadableImageError] = {}
    total = sum(map(len, todo.values()))
    with noted_interrupt() as stop, Progress(total, "images") as progress, Handover(writer) as handover:
        for view, indices in todo.items():
            batches = plan_batches(coco, indices, model.transform, batch_size)
            for batch in decode_ahead(coco, batches, model.transform, view, threads=threads):
                if batch.errors and strict:
                    raise next(iter(batch.errors.values()))
                unreadable.update(batch.errors)
                if batch.indices:
                    handover.give(view, batch.indices, model.detect(batch.images))
                progress.update(
                    len(batch.indices) + len(batch.errors), written(writer.path, writer.bytes_written, progress.seconds)
                )
                if stop.is_set() and progress.done < total:
                    raise PipelineError(
                        f"stopped by Ctrl-C with {total - progress.done} of {total} images to do",
                        "run the same command again to go on",
                    )
    return list(unreadable.values())


def _versions() -> dict[str, str]:
    """Of what could change the numbers; for the record only, not in the fingerprint."""
    found = {"python": platform.python_version()}
    for package in ("featcache", "torch", "onnxruntime", "transformers", "timm", "pillow", "zarr", "numcodecs"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
