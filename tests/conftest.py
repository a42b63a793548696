"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiny import Tiny

# Networks of a few thousand weights gain nothing from threads, and lose much where other work shares the processor.
# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights, which are never committed: $FEATCACHE_SHARED or ../shared."""
    folder = Path(os.environ.get("FEATCACHE_SHARED", Path(__file__).parents[1].parent / "shared"))
    if not (folder / "coco-mini").is_dir():
        pytest.skip(f"no real data: {folder}/coco-mini is absent (set FEATCACHE_SHARED)")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """Eight drawn pictures with annotations, and a random detector, in `tmp_path / "data"`."""
    from tiny import write_tiny

    return write_tiny(tmp_path / "data")
