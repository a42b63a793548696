"""How the command line ends where a command fails: a sentence, a hint, a status."""

import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from featcache.errors import CacheError

from .errors import PipelineError, UsageError


class ErrorGroup(TyperGroup):
    """Prints errors as one sentence and a hint; the status is 1, or 2 for misuse. `--debug` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error becomes words and a status."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if type(error).__module__.partition(".")[0] in (
                "typer",
                "click",
            ):  # exits and misuse, which Typer prints itself
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            message, hint = _in_words(error)
            typer.echo(f"error: {message}", err=True)
            if hint:
                typer.echo(f"hint: {hint}", err=True)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None


def _in_words(error: Exception) -> tuple[str, str]:
    if isinstance(error, PipelineError | CacheError):
        return error.message, error.hint
    return f"unexpected {type(error).__name__}: {error}", "python -m pipeline --debug ... shows where"
