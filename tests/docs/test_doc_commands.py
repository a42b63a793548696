"""Every command in a code block of the pages could be typed: the verb is known, and so is every option and setting."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import featcache.cli
import pipeline.cli
from pipeline.config import shipped
from pipeline.options import pairs
from pipeline.training.ablation import load_ablation
from pipeline.training.recipe import load_recipe, override

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")} - {ROOT / "docs" / "cli.md"})
PROGRAMS: dict[tuple[str, ...], Any] = {
    ("python", "-m", "pipeline"): get_command(pipeline.cli.app),
    ("featcache",): get_command(featcache.cli.app),
}


def code_lines(text: str) -> Iterator[str]:
    """Lines of fenced and of indented blocks, those that end in a backslash joined with the next."""
    fenced, joined = False, ""
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            joined += line.strip().removesuffix("\\")
            if not line.endswith("\\"):
                yield joined
                joined = ""


def words_of(line: str) -> list[str]:
    """As a shell splits it; nothing for what is none of our commands."""
    start = line.split(maxsplit=1)[:1]
    ours = start in (["python"], ["featcache"], ["make"])
    return shlex.split(line.partition(" && ")[0], comments=True) if ours else []


def check(words: list[str]) -> None:
    """Raise where the command line would refuse them."""
    if words[0] == "make":
        goals = {word for word in words[1:] if "=" not in word}
        assert goals <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)), goals
        return
    if words[0] == "python" and words[1] != "-m":
        check_script(words[1:])
        return
    program = next((program for program in PROGRAMS if tuple(words[: len(program)]) == program), None)
    if program is None:
        assert words[:3] == ["python", "-m", "pytest"], words
        return
    verb, *rest = words[len(program) :]
    command = PROGRAMS[program].commands[verb]
    rest = ["cpu" if word.startswith("cuda") else word for word in rest]  # whether there is one is not the question
    if "..." in rest:  # something is left out, but what is there is an option
        context = command.context_class(command, info_name=verb)
        command.make_parser(context).parse_args([word for word in rest if word != "..."])
    else:
        context = command.make_context(verb, rest)
        check_settings(context.params)


def check_settings(values: dict[str, Any]) -> None:
    """KEY=VALUE words against the head or the table that they are for, where that comes with the package."""
    settings = pairs(list(values.get("settings") or []))
    head, table = values.get("head"), values.get("ablation")
    if head in shipped("heads"):
        override(load_recipe(head), settings)
    if table is not None and table in shipped("ablations"):
        rows = load_ablation(table).rows
        assert all(
            any(hasattr(part, key) for row in rows for part in (row.recipe.head, row.recipe.train)) for key in settings
        )


def check_script(words: list[str]) -> None:
    """A script of ours, whose options stand in its source."""
    source = (ROOT / words[0]).read_text()
    for word in words[1:]:
        option = word.partition("=")[0]
        known = any(text in source for text in (option, f'"{option[2:]}"', f"options.{option[2:]}"))  # or made of names
        assert not option.startswith("--") or known, f"{words[0]} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_could_be_typed(page: Path) -> None:
    for line in code_lines(page.read_text()):
        words = words_of(line)
        if words:
            try:
                check(words)
            except Exception as error:
                raise AssertionError(f"{page.name}: {line}") from error


@pytest.mark.parametrize(
    "line",
    [
        "python -m pipeline trian --cache a --head unet --run b",
        "python -m pipeline train --cache a --head unet --run b --epochs 3",
        "python -m pipeline train --cache a --head unet",
        "python -m pipeline train --cache a --head unet --run b hiden=3",
        "python -m pipeline extract --detector a --images b --annotations c --cache d --codec zip",
        "python -m pipeline evaluate --cache a --run b    the AP of it",
        "python scripts/bench_cache.py --no-such-option 3",
        "featcache info",
        "make nothing",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011
        check(words_of(line))


def test_lines_are_joined_and_prose_is_left_out() -> None:
    text = "text\n    featcache info a \\\n        --json   # comment\n\n```\nmake demo\n```\nmake nothing of it\n"
    assert [words_of(line) for line in code_lines(text)] == [["featcache", "info", "a", "--json"], ["make", "demo"]]
