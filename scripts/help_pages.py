"""docs/cli.md: the help of every command of both programs, as they print it. `make docs` writes it, a test compares.

python scripts/help_pages.py
"""

from pathlib import Path

import typer
from typer.main import get_command
from typer.testing import CliRunner

import featcache.cli
import pipeline.cli

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
PROGRAMS: dict[str, typer.Typer] = {"python -m pipeline": pipeline.cli.app, "featcache": featcache.cli.app}
WIDTH = "100"
"""Columns of the terminal."""


def help_page() -> str:
    """The whole page."""
    parts = ["# Command lines", "What `--help` prints. Written by `make docs`; do not edit it by hand."]
    for program, app in PROGRAMS.items():
        parts += [f"## {program}", _help(program, app)]
        for command in getattr(get_command(app), "commands", {}):
            parts += [f"### {program} {command}", _help(program, app, command)]
    return "\n\n".join(parts) + "\n"


def _help(program: str, app: typer.Typer, *command: str) -> str:
    environment = {"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "NO_COLOR": "1"}
    result = CliRunner().invoke(
        app, [*command, "--help"], prog_name=program, env=environment, terminal_width=int(WIDTH)
    )
    lines = (line.rstrip() for line in result.stdout.strip().splitlines())
    return "```text\n" + "\n".join(lines) + "\n```"


if __name__ == "__main__":
    PAGE.write_text(help_page())
    print(PAGE)
