"""What `info` and `ls` tell of a cache: plain dictionaries, the keys of their --json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featcache.reader import Cache
from featcache.sizes import disk_usage
from featcache.source import is_url
from featcache.spec import FORMAT_VERSION


def info(cache: Cache) -> dict[str, Any]:
    """Identity, arrays, progress and size of a cache. Bytes are as `du` counts them, null for a remote cache."""
    spec = cache.spec
    done = {view: int(cache.done(view).sum()) for view in cache.views}
    used, files = (None, None) if is_url(cache.path) else disk_usage(Path(cache.path))
    pairs = sum(done.values())
    return {
        "path": cache.path,
        "format_version": FORMAT_VERSION,
        "fingerprint": spec.fingerprint,
        "source_fingerprint": spec.source_fingerprint,
        "codec": spec.codec,
        "shard": cache.shard,
        "images": len(cache),
        "done": done,
        "complete": pairs == len(cache) * len(cache.views),
        "annotations": sum(len(cache.ground_truth(index)) for index in range(len(cache))),
        "detections": spec.detections,
        "query_dim": spec.query_dim,
        "levels": [_level(cache, name) for name in (level.name for level in spec.levels)],
        "bytes": used,
        "files": files,
        "bytes_per_image": None if used is None or not pairs else used / pairs,
        "source": spec.source,
        "dataset": spec.dataset,
        "recipe": spec.recipe,
    }


def images(cache: Cache, *, missing: bool = False) -> list[dict[str, Any]]:
    """One row per image; with `missing`, only images that some view does not have."""
    done = {view: cache.done(view) for view in cache.views}
    return [
        {
            "index": index,
            "image_id": image.id,
            "height": image.height,
            "width": image.width,
            "annotations": len(cache.ground_truth(index)),
            **{f"done_{view}": bool(flags[index]) for view, flags in done.items()},
            "file_name": image.file_name,
        }
        for index, image in enumerate(cache.images)
        if not (missing and all(flags[index] for flags in done.values()))
    ]


def _level(cache: Cache, name: str) -> dict[str, Any]:
    level = cache.spec.level(name)
    return {
        "name": name,
        "stride": level.stride,
        "channels": level.channels,
        "max_h": level.max_hw[0],
        "max_w": level.max_hw[1],
        "delta": {view: cache.files(view).maps[name].delta for view in cache.views},
    }
