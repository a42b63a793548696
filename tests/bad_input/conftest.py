"""The world is made once, and copied for every test."""

import shutil
from pathlib import Path

import pytest
from tiny import Tiny, write_tiny
from world import World


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world = World(write_tiny(folder / "data"), folder / "cache", folder / "run", folder / "new")
    assert world.extract().exit_code == 0
    assert world.train(world.cache).exit_code == 0
    world.folder("run-2").rename(world.run)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> World:
    """A copy that a test may spoil."""
    folder = tmp_path / "world"
    shutil.copytree(made, folder)
    data = folder / "data"
    tiny = Tiny(data / "images", data / "annotations.json", data / "tiny.onnx", data / "tiny.toml")
    return World(tiny, folder / "cache", folder / "run", folder / "new")
