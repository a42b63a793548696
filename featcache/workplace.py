"""Where `prune` works: a directory beside the cache, with a marker in it, that holds nothing but what `prune` made."""

from __future__ import annotations

import os
from pathlib import Path

MARKER = "pruning"
"""Held as a lock while `prune` runs; last to go."""
NEW, OLD, GONE = "new", "old", "gone"
"""The cache to come; the cache while it is swapped for that, always whole; the same on its way out."""
_NAMES = {MARKER, NEW, f"{NEW}.partial", OLD, GONE}


def workplace(cache: Path) -> Path:
    """The directory in which a cache is pruned, on the same disk."""
    return Path(f"{cache}.prune")


def is_ours(directory: Path) -> bool:
    """Whether a directory holds nothing but what `prune` made, or nothing at all."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    names = set(os.listdir(directory))
    return not names or (MARKER in names and names <= _NAMES)


def half_pruned(place: object) -> Path | None:
    """Where the cache of a place stands that is just being swapped, or was when `prune` was killed; None if it is not.

    Only to be asked where no cache is at the place itself.
    """
    old = workplace(Path(os.path.realpath(str(place)))) / OLD
    return old if old.is_dir() and is_ours(old.parent) else None
