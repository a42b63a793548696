"""What is known of each shipped detector, from its TOML alone: nothing is loaded, torch is not imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import read_toml, shipped


@dataclass(frozen=True)
class Card:
    """One detector; None where its TOML does not say."""

    name: str
    kind: str
    summary: str
    backbone: str | None
    levels: tuple[str, ...]
    """Names of its maps in a cache; the number is the stride."""
    queries: int | None
    parameters: int | None
    weights: str | None
    """File name: of the official weights, or of those in the package."""
    embedded: bool
    """Whether it brings them."""
    box_ap: float | None
    """Published, COCO val2017, percent."""


def list_detectors() -> list[Card]:
    """A card for every shipped detector, by name."""
    return [_card(read_toml(file)) for file in shipped("detectors").values()]


def _card(table: Mapping[str, Any]) -> Card:
    return Card(
        name=table["name"],
        kind=table["kind"],
        summary=table["summary"],
        backbone=table.get("backbone"),
        levels=_levels(table),
        queries=table.get("queries"),
        parameters=table.get("parameters"),
        weights=table.get("weights", table.get("weights_name")),
        embedded="weights" in table,
        box_ap=table.get("box_ap"),
    )


def _levels(table: Mapping[str, Any]) -> tuple[str, ...]:
    if table["kind"] == "onnx":
        return tuple(tap["name"] for tap in sorted(table["taps"], key=lambda tap: tap["stride"]))
    names = [f"e{64 >> level}" for level in reversed(range(table["levels"]))]
    return ("c1", *names, *(f"{name}_l{layer}" for layer in table.get("extra_encoder_layers", ()) for name in names))
