"""A cache is made, or one that was begun goes on: which may, and which are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from featcache import store
from featcache.errors import CacheError, MismatchError, NotACacheError, no_cache_at
from featcache.files import PARTIAL_SUFFIXES, clear_directory
from featcache.layout import images_per_file
from featcache.lock import LOCK_NAME
from featcache.spec import CacheSpec, GroundTruth, ImageInfo, check_format_version
from featcache.workplace import half_pruned


def create_or_resume(
    path: Path,
    spec: CacheSpec,
    images: Sequence[ImageInfo],
    ground_truth: Sequence[GroundTruth],
    further_truth: Mapping[str, Callable[[], Sequence[GroundTruth]]],
    shard: int | None,
) -> tuple[CacheSpec, int]:
    """Make the cache where there is none; the spec and the images per file of the one that there is now.

    Raises MismatchError where there is one of another identity.
    """
    header = store.read_header(store.open_group(path)) if (path / "zarr.json").exists() else None
    if header is None and any(path.glob("views/*/done/c.*")):  # flags are made after the header
        raise CacheError(
            f"{path} holds images, but its zarr.json says nothing of them",
            "bring zarr.json back from a backup; or move the directory away, and extract again",
        )
    if header is None:  # new, or its creation was killed
        clear_directory(path, keep=LOCK_NAME)
        shard = shard or images_per_file(spec, len(images))
        truths: dict[str | None, Sequence[GroundTruth]] = {None: ground_truth}
        for name in spec.further_truth:
            truths[name] = further_truth[name]()
            check_tables(images, truths[name], None)
        store.create(path, spec, images, truths, shard)
        return spec, shard
    check_format_version(header["format_version"], str(path))
    stored = CacheSpec.from_json(header["spec"])
    fields = stored.differences(spec)
    if not all(_goes_on_as(name, cached) for name, cached, _ in fields):
        listing = "; ".join(f"{name}: cache has {cached!r}, now {now!r}" for name, cached, now in fields)
        raise MismatchError(
            f"cache {path} was made by something else ({listing})",
            "choose another --cache directory, or repeat the command that made this one (featcache info shows it)",
            fields,
        )
    return stored, int(header["shard"])


def _goes_on_as(field: str, cached: object) -> bool:
    """Whether a cache begun with that value goes on so, whatever is asked for: begun before there was a choice."""
    return field.endswith(".moments") or (field == "max_error" and cached is None)


def check_tables(images: Sequence[ImageInfo], ground_truth: Sequence[GroundTruth], shard: int | None) -> None:
    """Refuse tables that do not belong together."""
    if not images or len(images) != len(ground_truth):
        raise CacheError(
            f"{len(images)} images and {len(ground_truth)} ground truths given; both must be the same, not 0"
        )
    if len({image.id for image in images}) != len(images):
        raise CacheError("two images have the same id")
    if shard is not None and shard < 1:
        raise CacheError(f"shard is {shard}, must be at least 1")


def refuse_foreign(path: Path) -> None:
    """Refuse to write into a directory that holds something else, another zarr group included."""
    names = {entry.name for entry in path.iterdir()}
    if "zarr.json" not in names and half_pruned(path):
        if not names:  # made just now by who wants to write
            path.rmdir()
        raise no_cache_at(path)
    if not names or ("zarr.json" in names and store.read_header(store.open_group(path)) is not None):
        return
    ours = {LOCK_NAME, *store.TOP_NAMES}
    if LOCK_NAME not in names or any(name not in ours and not name.endswith(PARTIAL_SUFFIXES) for name in names):
        raise NotACacheError(f"{path} is not empty and not a cache", "choose a new or empty directory for the cache")
