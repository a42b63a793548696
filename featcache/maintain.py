"""`copy`, `merge`: a new cache is written under a temporary name and renamed when it is whole.

Killing one of them loses nothing: the caches that were there stay as they were, the same command goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache import codecs
from featcache.ahead import map_ahead
from featcache.errors import CacheError, MismatchError, no_cache_at
from featcache.files import sync
from featcache.progress import track, written
from featcache.reader import Cache
from featcache.record import Record
from featcache.repair import COPIED_FROM, with_cache
from featcache.source import is_url
from featcache.spec import CacheSpec, Codec
from featcache.workplace import half_pruned
from featcache.writer import CacheWriter


@dataclass(frozen=True)
class Pair:
    """One image in one view to take over: where it is and where it goes."""

    source: Cache
    source_index: int
    index: int
    view: str


@dataclass(frozen=True)
class Plan:
    """What a command will write; `run` does it, `summary` is what --dry-run prints."""

    target: Path
    spec: CacheSpec
    first: Cache  # gives images and ground truth
    images: tuple[int, ...]  # indices kept of `first`
    pairs: tuple[Pair, ...]
    shard: int
    missing: bool = False  # whether `target` is there, and gets what it lacks

    def summary(self) -> dict[str, object]:
        """The new cache in figures."""
        return {
            "target": str(self.target),
            "images": len(self.images),
            "done": {view: sum(pair.view == view for pair in self.pairs) for view in self.spec.views},
            "levels": [level.name for level in self.spec.levels],
            "codec": self.spec.codec,
            "shard": self.shard,
            "fingerprint": self.spec.fingerprint,
        }


def plan_copy(
    source: Cache,
    target: Path,
    *,
    codec: Codec | None = None,
    max_error: float | None = None,
    views: Sequence[str] | None = None,
    levels: Sequence[str] | None = None,
    image_ids: Collection[int] | None = None,
    finished: bool = False,
    shard: int | None = None,
) -> Plan:
    """A copy with only some images (`finished`: only those done in every view), views or levels; or another codec.

    `max_error` is that of `CacheSpec`, None keeps it where the codec stays.
    """
    coded = source.spec.in_codec(codec, max_error)
    if coded.codec == source.spec.codec and coded.max_error != source.spec.max_error:
        raise CacheError(
            f"{source.path} is rounded already, within {source.spec.max_error}; again would add to that",
            "copy from a cache of codec none or fp16, or leave max_error as it is",
        )
    views = tuple(views or source.views)
    done = {view: source.done(view) for view in views}
    chosen = range(len(source)) if image_ids is None else sorted({source.index_of(image_id) for image_id in image_ids})
    images = tuple(i for i in chosen if not finished or all(done[view][i] for view in views))
    if not images:
        raise CacheError(f"no image of cache {source.path} is left to copy", f"featcache ls {source.path}")
    names = list(levels or [level.name for level in source.spec.levels])
    spec = replace(
        coded,
        views=views,
        levels=tuple(source.spec.level(name) for name in names),
        dataset=source.spec.dataset | _subset(source, images),
        recipe=(source.spec.recipe if len(images) == len(source) else _whole(source.spec)) | _copied_from(source),
    )
    pairs = tuple(Pair(source, i, new, view) for view in views for new, i in enumerate(images) if done[view][i])
    return Plan(target, spec, source, images, pairs, source.shard if shard is None else shard)


def plan_missing(source: Cache, target: Cache) -> Plan:
    """What a copy lacks of the cache that it is a copy of; codec, levels, views and images are those of the copy."""
    spec, ids = target.spec, [image.id for image in target.images]
    plan = plan_copy(
        source,
        Path(target.path),
        codec=spec.codec,
        max_error=spec.max_error if source.spec.codec != spec.codec else None,
        views=spec.views,
        levels=[level.name for level in spec.levels],
        image_ids=ids,
        shard=target.shard,
    )
    fields = plan.spec.differences(spec)
    if fields or [source.images[i].id for i in plan.images] != ids:
        listing = "; ".join(f"{name}: {theirs!r}, and {mine!r} of such a copy" for name, mine, theirs in fields)
        raise MismatchError(
            f"{target.path} is no copy of {source.path} ({listing or 'images in another order'})",
            f"featcache diff {source.path} {target.path}",
            fields,
        )
    done = {view: target.done(view) for view in spec.views}
    pairs = tuple(pair for pair in plan.pairs if not done[pair.view][pair.index])
    return replace(plan, pairs=pairs, missing=True)


def plan_merge(sources: Sequence[Cache], target: Path, *, shard: int | None = None) -> Plan:
    """One cache of the parts of one extraction; raises MismatchError where a part was made by something else."""
    first = sources[0]
    for other in sources[1:]:
        fields = first.spec.differences(other.spec)
        if fields:
            listing = "; ".join(f"{name}: {mine!r} and {theirs!r}" for name, mine, theirs in fields)
            raise MismatchError(
                f"{first.path} and {other.path} are not parts of one extraction ({listing})",
                f"featcache diff {first.path} {other.path}",
                fields,
            )
    pairs: dict[tuple[int, str], Pair] = {}
    for source in sources:
        for view in first.views:
            for i in np.flatnonzero(source.done(view)).tolist():
                pairs.setdefault((i, view), Pair(source, i, i, view))
    ordered = tuple(pairs[i, view] for view in first.views for i in range(len(first)) if (i, view) in pairs)
    spec = replace(first.spec, recipe=_whole(first.spec, target))
    return Plan(target, spec, first, tuple(range(len(first))), ordered, first.shard if shard is None else shard)


def run(plan: Plan, *, threads: int = 2) -> Path:
    """Write the cache of a plan; returns its path."""
    if not plan.target.exists() and half_pruned(plan.target):  # its name is that of another cache
        raise no_cache_at(plan.target)
    if plan.target.exists() and not plan.missing:
        raise CacheError(f"{plan.target} exists already", "choose another name, or remove it first")
    partial = plan.target if plan.missing else plan.target.with_name(plan.target.name + ".partial")
    images = [plan.first.images[i] for i in plan.images]
    truths = [plan.first.ground_truth(i) for i in plan.images]
    further = {
        name: lambda name=name: [plan.first.ground_truth(i, name) for i in plan.images]
        for name in plan.spec.further_truth
    }
    with CacheWriter(partial, plan.spec, images, truths, further_truth=further, shard=plan.shard) as writer:
        pending = {view: set(writer.pending(view)) for view in plan.spec.views}
        todo = [pair for pair in plan.pairs if pair.index in pending[pair.view]]
        levels = [level.name for level in plan.spec.levels]
        records = map_ahead(lambda pair: pair.source.read(pair.source_index, pair.view, levels), todo, threads)
        shown = track(records, len(todo), facts=lambda seconds: written(partial, writer.bytes_written, seconds))
        for pair, record in zip(todo, shown, strict=True):
            _put(writer, pair, record)
    if not plan.missing:
        partial.rename(plan.target)
        sync([plan.target.parent])
    return plan.target


def _put(writer: CacheWriter, pair: Pair, record: Record) -> None:
    """Hand one image over: as it is stored where the codec stays, decoded and encoded again where it changes."""
    source, spec = pair.source, writer.spec
    if source.spec.codec != spec.codec:
        writer.put(pair.index, pair.view, **source.decode(record).features())
        return
    tokens = dict(record.tokens)
    for name, values in tokens.items():
        there = bool(source.files(pair.view).maps[name].delta)
        here = writer.delta(pair.view, name)
        if spec.codec == "uint8" and here is None:
            writer.set_delta(pair.view, name, there)
        elif spec.codec == "uint8" and here != there:
            h, w = record.level_hw(source.spec.position(name))
            rows = torch.as_tensor(values).view(h, w, -1)
            tokens[name] = (codecs.add_delta(rows) if here else codecs.undo_delta(rows)).numpy().reshape(values.shape)
    level_hw = record.rows["level_hw"][[source.spec.position(level.name) for level in spec.levels]]
    writer.put_record(Record(pair.index, pair.view, tokens, record.rows | {"level_hw": level_hw}))


def _subset(source: Cache, images: tuple[int, ...]) -> dict[str, object]:
    """What the dataset identity says of a copy that leaves out images."""
    if len(images) == len(source):
        return {}
    ids = ",".join(str(source.images[i].id) for i in images)
    return {"subset_images": len(images), "subset_sha256": hashlib.sha256(ids.encode()).hexdigest()}


def _copied_from(source: Cache) -> dict[str, Any]:
    """What the recipe of a copy says, for its repair."""
    return {COPIED_FROM: source.path if is_url(source.path) else str(Path(source.path).absolute())}


def _whole(spec: CacheSpec, target: Path | None = None) -> dict[str, Any]:
    """The recipe of a cache that is no part of another any more; its command is that of all parts, into `target`."""
    recipe = {key: value for key, value in spec.recipe.items() if key not in ("part", COPIED_FROM)}
    if target is not None and "command" in recipe:
        recipe["command"] = with_cache(recipe["command"], target.absolute(), whole=True)
    return recipe
