"""A head and how it is trained, from one TOML: `configs/heads/*.toml` hold the named ones, a path any other."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ..config import from_table, read_toml, shipped
from ..errors import UsageError, suggestion
from ..heads.registry import config_class
from .config import TrainConfig

RENAMED = {"mask-frozen-detr": {"points": "sampling_points"}}
"""Family -> fields of its config by their names of before; config.json of an older run has those."""


@dataclass(frozen=True)
class Recipe:
    """The content of one TOML, and its name."""

    name: str
    family: str
    about: str
    """One line for `python -m pipeline heads`."""
    head: Any
    """The family's config dataclass."""
    train: TrainConfig

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Recipe":
        """From what `dataclasses.asdict` gave and JSON carried, fields by their names of before too."""
        content = {key: value for key, value in table.items() if key != "name"}
        renamed = RENAMED.get(content["family"], {})
        content["head"] = {renamed.get(key, key): value for key, value in content["head"].items()}
        return _parse(table["name"], content, "the config of the run")


@dataclass(frozen=True)
class _Toml:
    """The tables of the file, before the family tells what may stand in `head`."""

    family: str
    about: str = ""
    head: Mapping[str, Any] = field(default_factory=dict[str, Any])
    train: Mapping[str, Any] = field(default_factory=dict[str, Any])


def load_recipe(name_or_file: str) -> Recipe:
    """A named head, or the TOML at a path; unknown names and keys suggest the nearest known one."""
    named = shipped("heads")
    if name_or_file in named:
        return _parse(name_or_file, read_toml(named[name_or_file]), str(named[name_or_file]))
    if not name_or_file.endswith(".toml"):
        hint = suggestion(name_or_file, named, f"known: {', '.join(named)}, or a TOML file")
        raise UsageError(f"no head '{name_or_file}'", hint)
    return _parse(Path(name_or_file).stem, read_toml(Path(name_or_file)), name_or_file)


def override(recipe: Recipe, assignments: Mapping[str, Any]) -> Recipe:
    """With other settings, a key being a field of the head or of its training.

    Strings are read as the `key=value` words of a command line are, a list also as `views=orig,hflip`; other values, of
    a caller in Python, are taken as they are.
    """
    hints = get_type_hints(TrainConfig) | get_type_hints(type(recipe.head))
    values = {key: _value(text, hints.get(key)) if isinstance(text, str) else text for key, text in assignments.items()}
    return change(recipe, values, "the command line")


def change(recipe: Recipe, settings: Mapping[str, Any], where: str) -> Recipe:
    """With other values, as TOML has them, for fields of the head or of its training.

    `where` (a file, the command line) says in errors whose settings these are. Fields that contradict each other are
    found only after all are set.
    """
    tables = {"head": asdict(recipe.head), "train": asdict(recipe.train)}
    for key, value in settings.items():
        home = next((table for table in tables.values() if key in table), None)
        if home is None:
            known = [name for table in tables.values() for name in table]
            raise UsageError(f"{where}: unknown setting '{key}'", suggestion(key, known))
        home[key] = value
    return replace(
        recipe,
        head=from_table(type(recipe.head), _with_lists(tables["head"]), where),
        train=from_table(TrainConfig, _with_lists(tables["train"]), where),
    )


def _parse(name: str, table: Mapping[str, Any], where: str) -> Recipe:
    toml = from_table(_Toml, table, where)
    return Recipe(
        name=name,
        family=toml.family,
        about=toml.about,
        head=from_table(config_class(toml.family, where), toml.head, f"{where}: [head]"),
        train=from_table(TrainConfig, toml.train, f"{where}: [train]"),
    )


def _value(text: str, hint: Any = None) -> Any:
    """A TOML value; what is none is a string, so that `amp=bf16` needs no quotes, or for a list its members."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if get_origin(hint) is tuple and not text.startswith("["):
            return [_value(word.strip()) for word in text.split(",") if word.strip()]
        return text


def _with_lists(table: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as the lists that TOML has."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in table.items()}
