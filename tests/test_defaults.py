"""A default that a command shows is the one of the function that it calls, which imports too much to be asked."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from featcache import checks, listing, prune, sizes, stats
from featcache import cli as cache_cli
from featcache import cli_change as change_cli
from pipeline import ablate, cli, cli_about, cli_results, describe, evaluate, extract, predict, report, train

SHELLS: dict[str, tuple[Callable[..., Any], Callable[..., Any], set[str]]] = {
    "ls": (cache_cli.list_images, listing.image_rows, set()),
    "verify": (cache_cli.verify, checks.verify, set()),
    "diff": (cache_cli.diff, checks.diff, set()),
    "estimate": (change_cli.estimate, sizes.estimate, set()),
    "stats": (change_cli.stats, stats.level_statistics, set()),
    "prune": (change_cli.prune, prune.prune, set()),
    "extract": (cli.extract, extract.main, {"views", "shard"}),
    "train": (cli.train, train.main, {"live"}),
    "evaluate": (cli.evaluate, evaluate.main, {"views"}),
    "ablate": (cli.ablate, ablate.main, {"seeds"}),
    "predict": (cli_results.predict, predict.main, {"views"}),
    "report": (cli_results.report, report.main, set()),
    "describe": (cli_about.describe, describe.main, set()),
}
"""Command, function, and the options that say something in other words than the argument of their name."""


@pytest.mark.parametrize("name", SHELLS)
def test_defaults_of_commands_are_those_of_the_library(name: str) -> None:
    command, function, reworded = SHELLS[name]
    shown, own = (
        {one.name: one.default for one in inspect.signature(part).parameters.values() if one.default is not one.empty}
        for part in (command, function)
    )
    shared = shown.keys() & own.keys()
    assert shared
    assert {one for one in shared if shown[one] != own[one]} == reworded
