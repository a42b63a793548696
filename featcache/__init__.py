"""featcache: a store of per-image feature maps on disk, written once by a frozen detector, read many times.

`CacheWriter` writes, `Cache` reads, `Loader` gives batches. Importing this package imports neither
torch nor zarr; a name does so when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.entry import Entry, Wanted
    from featcache.errors import CacheError
    from featcache.loader import Loader
    from featcache.moments import Moments
    from featcache.reader import Cache
    from featcache.spec import FORMAT_VERSION, CacheSpec, GroundTruth, ImageInfo, LevelSpec
    from featcache.writer import CacheWriter

_HOMES = {
    "CacheError": "errors",
    "Loader": "loader",
    "Moments": "moments",
    "Cache": "reader",
    "Entry": "entry",
    "FORMAT_VERSION": "spec",
    "CacheSpec": "spec",
    "GroundTruth": "spec",
    "ImageInfo": "spec",
    "LevelSpec": "spec",
    "CacheWriter": "writer",
    "Wanted": "entry",
}

__all__ = [
    "FORMAT_VERSION",
    "Cache",
    "CacheError",
    "CacheSpec",
    "CacheWriter",
    "Entry",
    "GroundTruth",
    "ImageInfo",
    "LevelSpec",
    "Loader",
    "Moments",
    "Wanted",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'featcache' has no attribute {name!r}")
    return getattr(import_module(f"featcache.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
