"""The errors of the cache: each is one sentence of what happened and one hint of what helps."""

import shlex

from featcache.workplace import half_pruned


class CacheError(Exception):
    """Something about a cache that its user can act on.

    `message` says what happened, where, what was expected and found; `hint` is what to type or try next ("" if none).
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message}\n{hint}")
        self.message = message
        self.hint = hint


class UsageError(CacheError):
    """The request itself cannot be: a name or a word of the command line; exit status 2."""


class NotACacheError(CacheError):
    """No cache at that place, or one whose creation never finished."""


class FormatVersionError(CacheError):
    """The cache was written in a format version that this release does not read."""


class MismatchError(CacheError):
    """Two identities that must be equal differ; `fields` lists (field, mine, theirs)."""

    def __init__(self, message: str, hint: str, fields: list[tuple[str, object, object]]) -> None:
        super().__init__(message, hint)
        self.fields = fields


class LockedError(CacheError):
    """Another living process writes this cache."""


class BadValueError(CacheError):
    """A tensor cannot be stored: wrong shape, not finite, or beyond what the codec holds."""


class NotDoneError(CacheError):
    """The image and view asked for is not extracted yet."""


class DamagedError(CacheError):
    """Bytes on disk are missing, do not match their checksum or do not decode: `what`, of the part named by `where`."""

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        super().__init__(f"{where}: {what}" if where else what, hint)
        self.what = what


class DiskFullError(CacheError):
    """The disk, quota or file-size limit is reached; everything marked done is safe."""


def no_cache_at(place: object) -> NotACacheError:
    """What to raise where nothing is, or not now: `prune` may have been stopped while it swapped a cache."""
    if old := half_pruned(place):
        path = str(old.parent).removesuffix(".prune")
        return NotACacheError(
            f"no cache at {place} now: prune replaces it, or was stopped when it did; the cache is whole, at {old}",
            f"run the same featcache prune again, or rename it back:  {shlex.join(['mv', str(old), path])}",
        )
    return NotACacheError(f"no cache at {place}", "write one:  python -m pipeline extract --help")


def unfinished_cache(place: object) -> NotACacheError:
    """What to raise where a cache has no header, which is written last."""
    return NotACacheError(
        f"{place} is no finished cache: its creation was interrupted, or another program made it",
        "run the extraction that was to make it again",
    )
