"""Fixtures of the tests of ablations."""

from pathlib import Path

import pytest
from ablate_toy import TABLE, write
from discs import write_discs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("ablate") / "cache")


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return write(tmp_path, TABLE)
