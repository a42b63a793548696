"""Errors that a user can act on: one sentence, and a hint that names the remedy."""

import difflib
from collections.abc import Iterable


class PipelineError(Exception):
    """`message`: what happened and where, one sentence; `hint`: the flag, file or command that helps ("" if none)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message}\n{hint}")
        self.message = message
        self.hint = hint


class UsageError(PipelineError):
    """The command line itself is wrong: exit status 2."""


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.4) -> str:
    """The `count` known names closest to `name`, quoted and joined for a hint; empty if none is close."""
    return ", ".join(f"'{match}'" for match in difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff))


def suggestion(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The hint about an unknown name: the nearest known one; where none is close `otherwise`, or all that are known."""
    known = list(known)
    close = nearest(name, known)
    return f"did you mean {close}?" if close else otherwise or f"known: {', '.join(known)}"
