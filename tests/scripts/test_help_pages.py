"""The command lines in the docs are those that are."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_docs_have_the_help_pages_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    sys.modules.pop("help_pages", None)
    from help_pages import PAGE, help_page

    assert PAGE.read_text() == help_page(), "docs/cli.md is stale: make docs"
