"""`verify`: is all that a cache calls done there and whole? `mark_damaged`: have the rest done again. `diff`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from featcache import store
from featcache.ahead import map_ahead
from featcache.errors import DamagedError
from featcache.lock import WriterLock
from featcache.problems import missing_tables, problems
from featcache.progress import read, track
from featcache.reader import Cache
from featcache.repair import fill_command, remedy
from featcache.rows import write_rows
from featcache.source import local_directory
from featcache.spec import CacheSpec, Difference

ROWS = "rows"
"""Stands for the level where the small arrays of an image are damaged."""

_LISTED_IMAGES = 50  # up to so many, a repair checks only the images found; beyond it the whole cache again


@dataclass(frozen=True)
class Damage:
    """One damaged part of an image: a level, or its rows."""

    image_id: int
    view: str
    level: str
    what: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. `problems` concern the whole cache, `damage` single images."""

    deep: bool
    images: int
    done: dict[str, int]  # by view
    checked: int  # (image, view) pairs
    problems: list[str]
    damage: list[Damage]
    remedy: str = ""
    """What helps against the problems."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong. Images that are not extracted yet are not wrong."""
        return not self.problems and not self.damage

    @property
    def damaged_images(self) -> list[int]:
        """Ids of the images with any damage."""
        return list(dict.fromkeys(item.image_id for item in self.damage))


def verify(
    path: str | os.PathLike[str], *, deep: bool = False, image_ids: Sequence[int] | None = None, threads: int = 2
) -> VerifyReport:
    """Check a cache, or some of its images.

    Quick: the fingerprint, the shape and type of every array, the flat arrays and whether all of their files are there,
    and that the map files of done images exist. Deep: also the checksums of every image's rows and of every chunk, and
    that each chunk decodes.
    """
    try:
        cache = Cache(path)
    except DamagedError as error:  # the header reads, the image table does not
        spec = CacheSpec.from_json((store.read_header(store.open_group(path)) or {})["spec"])
        found = missing_tables(str(path), spec) or [error.message]
        return VerifyReport(deep, 0, {}, 0, found, [], remedy(spec.recipe, str(path)))
    found = problems(cache)
    if found:
        return VerifyReport(deep, len(cache), {}, 0, found, [], remedy(cache.spec.recipe, cache.path))
    indices = range(len(cache)) if image_ids is None else [cache.index_of(image_id) for image_id in image_ids]
    done = {view: cache.done(view) for view in cache.views}
    pairs = [(index, view) for view in cache.views for index in indices if done[view][index]]
    if deep:
        results = map_ahead(lambda pair: damage_of(cache, *pair), pairs, threads)
        shown = track(results, len(pairs), facts=lambda seconds: read(cache.bytes_read, seconds))
        damage = [item for found in shown for item in found]
    else:
        damage = [item for pair in pairs for item in missing_files(cache, *pair)]
    return VerifyReport(deep, len(cache), {view: int(done[view].sum()) for view in done}, len(pairs), [], damage)


def damage_of(cache: Cache, index: int, view: str) -> list[Damage]:
    """Everything damaged of one image in one view, all bytes read."""
    image_id = cache.images[index].id
    damage: list[Damage] = []
    try:
        cache.read_rows(index, view)
    except DamagedError as error:
        damage.append(Damage(image_id, view, ROWS, error.what))
    for level in cache.spec.levels:
        try:
            cache.read_tokens(index, view, level.name)
        except DamagedError as error:
            damage.append(Damage(image_id, view, level.name, error.what))
    return damage


def missing_files(cache: Cache, index: int, view: str) -> list[Damage]:
    """The levels of one image whose file is not there."""
    return [
        Damage(cache.images[index].id, view, name, f"{key} is missing")
        for name, files in cache.files(view).maps.items()
        if not cache.has_file(key := files.key(index // files.shard))
    ]


def mark_damaged(path: Path, damage: Iterable[Damage]) -> int:
    """Clear the done flags of damaged images, so that an extraction does just those again; how many were cleared."""
    lock = WriterLock(local_directory(path))
    try:
        cache = Cache(path)
        pairs = {(cache.index_of(item.image_id), item.view) for item in damage}
        write_rows(path, [(cache.files(view).done, index, b"\0") for index, view in pairs])
    finally:
        lock.release()
    return len(pairs)


def repair_command(cache: Cache, report: VerifyReport, *, marked: bool) -> str | None:
    """The one command line that makes just the damaged images again; None where nothing is damaged."""
    if not report.damage:
        return None
    unknown = "python -m pipeline extract --help  # the command is not recorded"
    again = fill_command(cache.spec.recipe, cache.path) or unknown
    if marked:
        return again
    ids = report.damaged_images
    some = f" --images {','.join(map(str, ids))}" if len(ids) <= _LISTED_IMAGES else ""
    deep = " --deep" if report.deep else ""
    return f"featcache verify {shlex.quote(cache.path)}{deep}{some} --repair && {again}"


@dataclass(frozen=True)
class ValueDifference:
    """One part of one image that differs by more than asked: the largest absolute difference, inf for another shape."""

    image_id: int
    view: str
    part: str  # a level, or queries, boxes, scores, labels
    max_abs: float


@dataclass(frozen=True)
class DiffReport:
    """How two caches differ: in what they say made them, in which images are done, in values."""

    identity: list[Difference]
    only_in_a: list[tuple[int, str]]  # (image id, view) done there and not in the other
    only_in_b: list[tuple[int, str]]
    compared: int  # (image, view) pairs
    values: list[ValueDifference]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.identity or self.only_in_a or self.only_in_b or self.values)


def diff(a: Cache, b: Cache, *, atol: float = 0.0, threads: int = 2) -> DiffReport:
    """Compare identity, then which images are done, then every value of the images done in both, by image id."""
    done_a, done_b = _done_pairs(a), _done_pairs(b)
    common = [pair for pair in done_a if pair in done_b]
    results = map_ahead(lambda pair: _value_differences(a, b, *pair, atol=atol), common, threads)
    shown = track(results, len(common), facts=lambda seconds: read(a.bytes_read + b.bytes_read, seconds))
    values = [item for found in shown for item in found]
    return DiffReport(
        identity=a.spec.differences(b.spec),
        only_in_a=[pair for pair in done_a if pair not in done_b],
        only_in_b=[pair for pair in done_b if pair not in done_a],
        compared=len(common),
        values=values,
    )


def _done_pairs(cache: Cache) -> dict[tuple[int, str], None]:
    return {(cache.images[i].id, view): None for view in cache.views for i in np.flatnonzero(cache.done(view)).tolist()}


def _value_differences(a: Cache, b: Cache, image_id: int, view: str, *, atol: float) -> list[ValueDifference]:
    mine, theirs = a.image(image_id, view), b.image(image_id, view)
    parts = {name: (values, theirs.maps[name]) for name, values in mine.maps.items() if name in theirs.maps}
    for name in ("queries", "boxes", "scores", "labels"):
        parts[name] = getattr(mine, name), getattr(theirs, name)
    largest = {name: _max_abs(*values) for name, values in parts.items()}
    return [ValueDifference(image_id, view, name, value) for name, value in largest.items() if value > atol]


def _max_abs(x: Tensor, y: Tensor) -> float:
    if x.shape != y.shape:
        return float("inf")
    return float((x.double() - y.double()).abs().max()) if x.numel() else 0.0
