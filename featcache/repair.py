"""The command that does again what a cache lacks: its extraction, or for a copy the copying of just that."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.source import is_url

COPIED_FROM = "copied_from"
"""Of the recipe of a copy: the cache that it was copied from; "" of one that took the place of its source (`prune`)."""


def fill_command(recipe: Mapping[str, Any], path: str) -> str | None:
    """What fills the cache at `path` again where it is not done; None where no command is recorded.

    The extraction that is recorded named the place where the cache was made; it is told where the cache is now.
    A copy may hold fewer images or levels or have another codec, so the extraction of its source cannot write into it.
    It is filled from its source; where that is gone, from another extraction of the same, made beside it.
    """
    command, source = recipe.get("command"), recipe.get(COPIED_FROM)
    if source is None:
        return command if command is None or is_url(path) else with_cache(command, Path(path).absolute())
    if source and (is_url(source) or Path(source).exists()):
        return _copy(source, path)
    if command is None:
        return None
    again = f"{path.rstrip('/')}.again"
    return f"{with_cache(command, Path(again))} && {_copy(again, path)}"


def remedy(recipe: Mapping[str, Any], path: str) -> str:
    """What helps where a cache as a whole is damaged, which no image that is done again repairs."""
    backup, source = "bring back what is named from a backup", recipe.get(COPIED_FROM)
    if source and (is_url(source) or Path(source).exists()):
        return f"{backup}, or copy {source} again, under another name (featcache copy --help)"
    command = recipe.get("command")
    if command is None:
        return f"{backup}, or make the cache again, under another name"
    again = with_cache(command, Path(f"{Path(path).absolute()}.again"))
    return f"{backup}, or make the cache again, under another name:\n  {again}"


def with_cache(command: str, target: Path, *, whole: bool = False) -> str:
    """An extraction into another cache; whole: of all images, not of its --shard."""
    words: list[str] = []
    rest = iter(shlex.split(command))
    for word in rest:
        option, joined, _ = word.partition("=")
        if option == "--cache" or (whole and option == "--shard"):
            if not joined:
                next(rest, None)
            words += ["--cache", str(target)] if option == "--cache" else []
        else:
            words.append(word)
    return shlex.join(words)


def _copy(source: str, path: str) -> str:
    return shlex.join(["featcache", "copy", source, path, "--missing"])
