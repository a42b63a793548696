"""What `info` tells of a cache: a plain dictionary, the keys of its --json. Needs no torch, no zarr, no NumPy."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from featcache.disk import Usage, usage_by_directory
from featcache.header import Header, read_header
from featcache.lock import living_writer
from featcache.repair import fill_command
from featcache.source import is_url
from featcache.spec import FORMAT_VERSION, STORED_DTYPE, LevelSpec


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Identity, arrays, progress and size of a cache.

    Bytes are as `du` counts them, null for a remote cache. `ratio` is the bytes of everything against those of the maps
    of the done images as raw fp16; that of a level counts its map files alone. `max_error` is that of
    `CacheSpec`, 0 where no map has fewer steps than the codec holds. While a process writes the cache,
    `images_per_second` is its speed since it began, and `eta_seconds` the time that all missing images take at it.
    `command` goes on with the cache where it is now; that of the recipe is as it was given.
    """
    header = read_header(path)
    spec = header.spec
    flags = {view: header.flags(view) for view in spec.views}
    done = {view: one.count(1) for view, one in flags.items()}
    writer = None if is_url(header.path) else living_writer(Path(path))
    usage = None if is_url(header.path) else usage_by_directory(Path(path), times=writer is not None)
    used = None if usage is None else sum(directory.bytes for directory in usage.values())
    files = None if usage is None else sum(directory.files for directory in usage.values())
    pairs, part = sum(done.values()), _part(spec.recipe.get("part"), flags)
    left = sum(one.count(0, *(part or [])) for one in flags.values())
    speed = _speed(header, usage, writer) if usage is not None and writer is not None else None
    raw = _raw_bytes(header)
    return {
        "path": header.path,
        "format_version": FORMAT_VERSION,
        "fingerprint": spec.fingerprint,
        "source_fingerprint": spec.source_fingerprint,
        "codec": spec.codec,
        "max_error": spec.max_error,
        "shard": header.shard,
        "images": header.images,
        "done": done,
        "complete": pairs == header.images * len(spec.views),
        "part": part,
        "part_complete": left == 0,
        "writer": writer,
        "images_per_second": speed,
        "eta_seconds": left / speed if speed else None,
        "annotations": header.annotations,
        "further_truth": header.further_truth(),
        "detections": spec.detections,
        "query_dim": spec.query_dim,
        "levels": [_level(header, level, usage, raw) for level in spec.levels],
        "bytes": used,
        "files": files,
        "bytes_per_image": None if used is None or not pairs else used / pairs,
        "raw_fp16_bytes": None if raw is None else sum(raw.values()),
        "ratio": None if used is None or not raw or not pairs else used / sum(raw.values()),
        "source": spec.source,
        "dataset": spec.dataset,
        "recipe": spec.recipe,
        "command": fill_command(spec.recipe, header.path),
    }


def _part(part: list[int] | None, flags: dict[str, bytes]) -> list[int] | None:
    """The images that the extraction was told to do; None for all, as where others have been done since."""
    if part is None or any(one.count(1, 0, part[0]) or one.count(1, part[1]) for one in flags.values()):
        return None
    return part


def _level(
    header: Header, level: LevelSpec, usage: dict[str, Usage] | None, raw: dict[str, int] | None
) -> dict[str, Any]:
    delta = {view: header.delta(view, level.name) for view in header.spec.views}  # raises where one is missing
    used = None if usage is None else sum(usage[f"views/{v}/maps/{level.name}"].bytes for v in header.spec.views)
    return {
        "name": level.name,
        "stride": level.stride,
        "channels": level.channels,
        "max_h": level.max_hw[0],
        "max_w": level.max_hw[1],
        "dtype": STORED_DTYPE[header.spec.codec],
        "codec": header.spec.codec,
        "bytes": used,
        "ratio": None if used is None or raw is None or not raw[level.name] else used / raw[level.name],
        "delta": delta,
    }


def _raw_bytes(header: Header) -> dict[str, int] | None:
    """Bytes of the maps of the done images as fp16, by level; None where the sizes do not lie on disk as we wrote."""
    cells = [0] * len(header.spec.levels)
    for view in header.spec.views:
        found = header.cells(view)
        if found is None:
            return None
        cells = [one + more for one, more in zip(cells, found, strict=True)]
    return {level.name: 2 * level.channels * n for level, n in zip(header.spec.levels, cells, strict=True)}


def _speed(header: Header, usage: dict[str, Usage], writer: dict[str, Any]) -> float | None:
    """Images a second since the writer began, judged by the map files of one level that it has finished."""
    since = datetime.fromisoformat(writer["since"]).timestamp()
    level = header.spec.levels[0].name
    files = [moment for view in header.spec.views for moment in usage[f"views/{view}/maps/{level}"].chunks]
    written = sum(moment >= since for moment in files) * header.shard
    return written / max(time.time() - since, 1e-9) if written else None
