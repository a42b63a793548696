"""How the command line ends where a command fails: a sentence, a hint, a status."""

from typing import ClassVar

import featcache.cli_errors

from .errors import PipelineError, UsageError


class ErrorGroup(featcache.cli_errors.ErrorGroup):
    """As in `featcache`, for the errors of both packages."""

    program = "python -m pipeline"
    known: ClassVar[tuple[type[Exception], ...]] = (*featcache.cli_errors.ErrorGroup.known, PipelineError)
    misuse: ClassVar[tuple[type[Exception], ...]] = (*featcache.cli_errors.ErrorGroup.misuse, UsageError)
