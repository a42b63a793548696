"""What `info` and `ls` tell of a cache: plain dictionaries, the keys of their --json. `info` needs no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.disk import Usage, usage_by_directory
from featcache.header import Header, read_header
from featcache.lock import living_writer
from featcache.source import is_url
from featcache.spec import FORMAT_VERSION, LevelSpec

if TYPE_CHECKING:
    from featcache.reader import Cache

DTYPES = {"uint8": "uint8", "fp16": "float16", "none": "float32"}
"""Type of the stored values, by codec."""


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Identity, arrays, progress and size of a cache.

    Bytes are as `du` counts them, null for a remote cache. `ratio` is the bytes of everything against those of the maps
    of the done images as raw fp16; that of a level counts its map files alone. `max_error` is that of
    `CacheSpec`, 0 where no map has fewer steps than the codec holds. While a process writes the cache,
    `images_per_second` is its speed since it began, and `eta_seconds` the time that all missing images take at it.
    """
    header = read_header(path)
    spec = header.spec
    done = {view: header.done(view) for view in spec.views}
    usage = None if is_url(header.path) else usage_by_directory(Path(path))
    used = None if usage is None else sum(directory.bytes for directory in usage.values())
    files = None if usage is None else sum(directory.files for directory in usage.values())
    pairs, wanted = sum(done.values()), header.images * len(spec.views)
    writer = None if usage is None else living_writer(Path(path))
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
        "complete": pairs == wanted,
        "writer": writer,
        "images_per_second": speed,
        "eta_seconds": (wanted - pairs) / speed if speed else None,
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
    }


def images(cache: Cache, *, missing: bool = False, min_score: float = 0.3) -> list[dict[str, Any]]:
    """One row per image; with `missing`, only images that some view does not have.

    `boxes` counts the detections of the first view that score at least `min_score`, `score` is the best of them all;
    both null where the image is not extracted. `categories` are those annotated, by name.
    """
    done = {view: cache.done(view) for view in cache.views}
    names = {int(c["id"]): str(c["name"]) for c in cache.spec.recipe.get("categories", [])}
    scores = _scores(cache)
    rows: list[dict[str, Any]] = []
    for index, image in enumerate(cache.images):
        flags = {f"done_{view}": bool(of_view[index]) for view, of_view in done.items()}
        if missing and all(flags.values()):
            continue
        truth = cache.ground_truth(index)
        found = scores[index] if done[cache.views[0]][index] else None
        rows.append(
            {
                "index": index,
                "image_id": image.id,
                "height": image.height,
                "width": image.width,
                "annotations": len(truth),
                "boxes": None if found is None else int((found >= min_score).sum()),
                "score": None if found is None else round(float(found.max(initial=0.0)), 3),
                **flags,
                "categories": sorted({names.get(int(c), str(int(c))) for c in truth.category_ids}),
                "file_name": image.file_name,
            }
        )
    return rows


def _scores(cache: Cache) -> Sequence[NDArray[np.float32]]:
    """Scores of the detections of every image, in the first view."""
    header, view = read_header(cache.path), cache.views[0]
    scores, counts = header.rows(view, "scores", np.dtype("<f4")), header.rows(view, "count", np.dtype("<i4"))
    if scores is not None and counts is not None:
        return [row[:count] for row, count in zip(scores, counts.tolist(), strict=True)]
    done = cache.done(view).tolist()
    return [_scores_of(cache, index, view) if there else np.zeros(0, np.float32) for index, there in enumerate(done)]


def _scores_of(cache: Cache, index: int, view: str) -> NDArray[np.float32]:
    rows = cache.read_rows(index, view)
    return rows["scores"][: int(rows["count"])]


def _level(
    header: Header, level: LevelSpec, usage: dict[str, Usage] | None, raw: dict[str, int] | None
) -> dict[str, Any]:
    used = None if usage is None else sum(usage[f"views/{v}/maps/{level.name}"].bytes for v in header.spec.views)
    return {
        "name": level.name,
        "stride": level.stride,
        "channels": level.channels,
        "max_h": level.max_hw[0],
        "max_w": level.max_hw[1],
        "dtype": DTYPES[header.spec.codec],
        "codec": header.spec.codec,
        "bytes": used,
        "ratio": None if used is None or raw is None or not raw[level.name] else used / raw[level.name],
        "delta": {view: header.delta(view, level.name) for view in header.spec.views},
    }


def _raw_bytes(header: Header) -> dict[str, int] | None:
    """Bytes of the maps of the done images as fp16, by level; None where the sizes do not lie on disk as we wrote."""
    cells = np.zeros(len(header.spec.levels), np.int64)
    for view in header.spec.views:
        sizes = header.level_sizes(view)
        if sizes is None:
            return None
        cells += sizes.astype(np.int64).prod(2).sum(0)
    return {level.name: 2 * level.channels * int(n) for level, n in zip(header.spec.levels, cells, strict=True)}


def _speed(header: Header, usage: dict[str, Usage], writer: dict[str, Any]) -> float | None:
    """Images a second since the writer began, judged by the map files of one level that it has finished."""
    since = datetime.fromisoformat(writer["since"]).timestamp()
    level = header.spec.levels[0].name
    files = [moment for view in header.spec.views for moment in usage[f"views/{view}/maps/{level}"].chunks]
    written = sum(moment >= since for moment in files) * header.shard
    return written / max(time.time() - since, 1e-9) if written else None
