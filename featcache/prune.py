"""`prune`: a cache gives its place to a smaller one that was made of it, in a directory beside it (`workplace.py`).

Killed at any instant it loses nothing. It touches nothing that it did not make, whatever that is called.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featcache import maintain
from featcache.errors import CacheError
from featcache.files import sync
from featcache.lock import WriterLock
from featcache.maintain import Plan
from featcache.reader import Cache
from featcache.repair import COPIED_FROM
from featcache.source import local_directory
from featcache.workplace import GONE, MARKER, NEW, OLD, is_ours, workplace


def plan_prune(path: Path, *, levels: Sequence[str] | None = None, unfinished: bool = False) -> Plan:
    """What `prune` with the same arguments will leave at `path`; changes nothing."""
    path = _place(path)
    work = workplace(path)
    if os.path.lexists(work) and not is_ours(work):
        raise CacheError(f"{work} is in the way: prune works in a directory of that name, and did not make it", _MOVE)
    if (work / OLD).exists() and _is_occupied(path) and ((work / NEW).exists() or not _is_cache(path)):
        raise CacheError(
            f"prune was stopped while {path} was {work / OLD}, and {path} is something else now",
            "move away the one that you do not need",
        )
    standing = path if _is_cache(path) or not (work / OLD).exists() else work / OLD
    cache = Cache(standing)
    plan = maintain.plan_copy(cache, path, levels=levels, finished=unfinished)
    recipe = plan.spec.recipe | {COPIED_FROM: cache.spec.recipe.get(COPIED_FROM, "")}  # not from what goes
    return replace(plan, spec=replace(plan.spec, recipe=recipe))


def prune(path: Path, *, levels: Sequence[str] | None = None, unfinished: bool = False, threads: int = 2) -> Path:
    """Replace a cache by one without its unfinished images or with only some levels; what a link names, not the link.

    After a kill the same call ends it; one with other arguments begins again.
    """
    plan_prune(path, levels=levels, unfinished=unfinished)  # raises where it cannot be, before anything is made
    path = _place(path)
    work = workplace(path)
    work.mkdir(exist_ok=True)
    marker = WriterLock(work, MARKER)
    try:
        _settle(path, work)
        lock = WriterLock(path)
        try:
            plan = plan_prune(path, levels=levels, unfinished=unfinished)  # of what it is now, and not before the lock
            _clear_unlike(work / f"{NEW}.partial", plan)
            maintain.run(replace(plan, target=work / NEW), threads=threads)
            path.rename(work / OLD)
            (work / NEW).rename(path)
            sync([work, path.parent])
        finally:
            lock.release()
        _remove_old(work)
    finally:
        _leave(work)
        marker.release()
    return path


def _settle(path: Path, work: Path) -> None:
    """After a kill: undo a swap of which half was done, clean up after a whole one."""
    if (work / OLD).exists():
        if _is_cache(path):
            _remove_old(work)
        else:
            (work / OLD).rename(path)
            sync([path.parent, work])
    for name in (NEW, GONE):  # whole, but perhaps of other arguments or of fewer images
        shutil.rmtree(work / name, ignore_errors=True)


def _remove_old(work: Path) -> None:
    """In two steps, so that what is called OLD is whole at any time."""
    (work / OLD).rename(work / GONE)
    shutil.rmtree(work / GONE)


def _clear_unlike(partial: Path, plan: Plan) -> None:
    """Remove what a killed call left that was to be another cache; the same one goes on."""
    try:
        if Cache(partial).fingerprint == plan.spec.fingerprint:
            return
    except CacheError:  # not there, or hardly begun
        pass
    shutil.rmtree(partial, ignore_errors=True)


def _leave(work: Path) -> None:
    """Remove the directory if nothing is left in it to go on with; the marker last, it says whose the rest is."""
    if set(os.listdir(work)) <= {MARKER}:
        shutil.rmtree(work / MARKER, ignore_errors=True)
        work.rmdir()


def _place(path: Path) -> Path:
    """The directory itself: a link stays what it is, and `.` has a name and something beside it."""
    return local_directory(path).resolve()


def _is_cache(path: Path) -> bool:
    return (path / "zarr.json").exists()


def _is_occupied(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


_MOVE = "move it away or rename it"
