"""Fixtures for the tests of the cache."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_toy import make_features, make_images, make_spec, make_truth

from featcache import CacheWriter
from featcache.cli import main


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where the system has such a place: a cache flushes often, a busy disk would make the tests slow."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="featcache-test-") as folder:
        yield Path(folder)


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., Path]:
    """Writes a cache of `count` images: make_cache(count, name, shard, order, spec fields) -> path."""

    def make(
        count: int = 5, *, name: str = "cache", shard: int = 1, order: list[int] | None = None, **changes: Any
    ) -> Path:
        spec = make_spec(**changes)
        with CacheWriter(tmp_path / name, spec, make_images(count), make_truth(count), shard=shard) as writer:
            for view in spec.views:
                for index in range(count) if order is None else order:
                    writer.put(index, view, **make_features(index, view))
        return tmp_path / name

    return make


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run("info", path) -> (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["featcache", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run
