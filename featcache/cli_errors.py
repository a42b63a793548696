"""How a command line ends where a command fails: one sentence, a hint, a status; the traceback only with --debug."""

from __future__ import annotations

import errno
import traceback
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from featcache.errors import CacheError, UsageError
from featcache.files import full_disk_is_clear

DEBUG = "--debug"


class ErrorGroup(TyperGroup):
    """The commands of one command line. `--debug` may stand anywhere behind the program's name.

    An error becomes `error: ...` and `hint: ...` on stderr. The status is 1, or 2 for misuse.
    """

    program: ClassVar[str] = "featcache"
    known: ClassVar[tuple[type[Exception], ...]] = (CacheError,)
    """Errors with a `message` and a `hint`."""
    misuse: ClassVar[tuple[type[Exception], ...]] = (UsageError,)
    """Those of them that end with status 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options of the program, the name of the command, and its words."""
        words = [word for word in args if word != DEBUG]
        return super().parse_args(ctx, [DEBUG, *words] if len(words) < len(args) else words)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error becomes words and a status."""
        try:
            with full_disk_is_clear("output"):
                return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if _is_for_typer(error):
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            message, hint = self.in_words(error)
            typer.echo(f"error: {message}", err=True)
            if hint:
                typer.echo(f"hint: {hint}", err=True)
            raise typer.Exit(2 if isinstance(error, self.misuse) else 1) from None

    def in_words(self, error: BaseException) -> tuple[str, str]:
        """What happened, and what helps ("" if nothing is known to)."""
        if isinstance(error, self.known):
            return getattr(error, "message", str(error)), getattr(error, "hint", "")
        if isinstance(error, KeyboardInterrupt):
            return "stopped by Ctrl-C", "run the same command again"
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            return f"{error.filename}: {error.strerror}", f"{self.program} {DEBUG} ... shows where"
        return f"unexpected {type(error).__name__}: {error}", f"{self.program} {DEBUG} ... shows where"


def _is_for_typer(error: BaseException) -> bool:
    """Exits and misuse, which Typer prints itself, and a closed pipe as behind `| head`, which it ends quietly."""
    ours = type(error).__module__.partition(".")[0] not in ("typer", "click")
    return not ours or (isinstance(error, OSError) and error.errno == errno.EPIPE)
