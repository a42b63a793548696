"""`--help` of every command of both programs has an example that can be pasted, as one command, and that parses."""

import re
import shlex
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import featcache.cli
import pipeline.cli

PROGRAMS: dict[str, typer.Typer] = {"featcache": featcache.cli.app, "python -m pipeline": pipeline.cli.app}
PARSERS: dict[str, Any] = {program: get_command(app) for program, app in PROGRAMS.items()}
COMMANDS = [(program, name) for program, parser in PARSERS.items() for name in sorted(parser.commands)]


def examples(program: str, *command: str) -> list[list[str]]:
    """The words of every example in a help page of 80 columns, without those of the program.

    An example is a line; nothing that a wrapped one would have left over may follow it.
    """
    narrow = {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"}
    result = CliRunner().invoke(PROGRAMS[program], [*command, "--help"], env=narrow, terminal_width=80)
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.replace("\\\n", " ").splitlines()]
    found: list[list[str]] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if match := re.fullmatch(rf"(?:Example: +)?{re.escape(program)} ([a-z].*)", line):
            assert following == "" or following.startswith(program), f"{line!r} goes on in {following!r}"
            found.append(shlex.split(match[1]))
    return found


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_every_command_has_an_example_that_parses(program: str, command: str) -> None:
    found = examples(program, command)
    assert found
    for name, *words in found:
        assert name == command
        PARSERS[program].commands[command].make_context(command, words)  # raises what the command line would


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program_has_an_example_and_names_every_command(program: str) -> None:
    page = CliRunner().invoke(PROGRAMS[program], ["--help"]).stdout
    for name in (name for one, name in COMMANDS if one == program):
        assert re.search(rf"^ +{name} ", page, re.MULTILINE), name
    assert len(examples(program)) == 1
