"""A small world that a test may spoil, commands typed into it, and what they must say of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from tiny import Tiny
from typer.testing import CliRunner, Result

import featcache.cli
import pipeline.cli
from featcache import Cache

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class World:
    """Pictures, annotations and a detector; the whole cache of them, and a run with a head trained on it."""

    tiny: Tiny
    cache: Path
    run: Path
    new: Path
    """Nothing is here yet."""

    def extract(self, cache: Path | None = None, *more: object) -> Result:
        options = [f"--{name}={value}" for name, value in self.tiny.arguments.items()]
        return call("pipeline", "extract", *options, "--cache", cache or self.cache, "--batch-size", 1, *more)

    def train(self, cache: Path, *more: object, head: object = "unet") -> Result:
        return call(
            "pipeline", "train", "--cache", cache, "--head", head, "--run", self.new.with_name("run-2"),
            "--steps", 2, "--batch-size", 8, "roi=8", "warmup=0", *more,
        )  # fmt: skip

    def coco(self) -> dict[str, Any]:
        return json.loads(self.tiny.annotations.read_text())

    def annotate(self, coco: dict[str, Any]) -> None:
        self.tiny.annotations.write_text(json.dumps(coco))

    def picture(self, index: int) -> Path:
        """The file of the image at a position of the cache."""
        return self.tiny.images / Cache(self.cache).images[index].file_name

    def folder(self, name: str) -> Path:
        return self.new.with_name(name)

    def refuses(self, case: "Case") -> None:
        """A command ends with an error before anything is written: the cache stays as it is, byte for byte."""
        spoil, command, message, hint = case
        spoil(self)
        before = contents(self.cache)
        places = {
            "cache": self.cache, "new": self.new, "annotations": self.tiny.annotations, "images": self.tiny.images,
            "toml": self.tiny.toml, "folder": self.cache.parent,
        }  # fmt: skip
        told(command(self), message.format(**places), hint.format(**places))
        assert contents(self.cache) == before


def call(program: str, *words: object) -> Result:
    app: typer.Typer = {"pipeline": pipeline.cli.app, "featcache": featcache.cli.app}[program]
    return CliRunner().invoke(app, [str(word) for word in words])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but the one that names its writer."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {name: file.read_bytes() for file in files if (name := str(file.relative_to(folder))) != "writer/zarr.json"}


def same_arrays(a: Path, b: Path) -> bool:
    return call("featcache", "diff", a, b).exit_code == 0


def told(result: Result, message: str, hint: str = "", status: int = 1) -> None:
    """An error in words and its status; nothing on stdout that a script could take for a result."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert f"error: {message}" in result.stderr
    if hint:
        assert f"hint: {hint}" in result.stderr
    assert "Traceback" not in result.stderr


Change = Callable[[World], None]
Command = Callable[[World], Result]
Case = tuple[Change, Command, str, str]
"""What is spoilt, what is typed, the message and the hint, with {places} in them."""


def annotated(change: Callable[[dict[str, Any]], object]) -> Change:
    def spoil(world: World) -> None:
        coco = world.coco()
        change(coco)
        world.annotate(coco)

    return spoil


def header(**fields: Any) -> Change:
    """Another value in the header of the cache."""

    def spoil(world: World) -> None:
        file = world.cache / "zarr.json"
        document = json.loads(file.read_text())
        document["attributes"]["featcache"] |= fields
        file.write_text(json.dumps(document))

    return spoil


def replaced(name: str, old: str, new: str) -> Change:
    """Another text in a file of the world."""

    def spoil(world: World) -> None:
        file = world.tiny.toml.with_name(name)
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return spoil


def head_toml(text: str) -> Change:
    return lambda world: world.folder("head.toml").write_text(text) and None


def nothing(world: World) -> None:
    pass


def again(*more: object) -> Command:
    """The extraction that made the cache, once more."""
    return lambda world: world.extract(world.cache, *more)
