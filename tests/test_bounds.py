"""Numbers that a field of a config may not have are refused naming field, value and range, whatever the config."""

from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import pytest

from pipeline.bounds import Bounds, Count, CountOrZero, bounds_of, check_bounds
from pipeline.detectors.native import NativeConfig
from pipeline.errors import PipelineError
from pipeline.heads.registry import FAMILIES
from pipeline.training.config import TrainConfig
from pipeline.training.recipe import load_recipe, override

CONFIGS = [TrainConfig, NativeConfig, *(config for config, _ in FAMILIES.values())]


@dataclass(frozen=True)
class Sample:
    rate: Annotated[float, Bounds(0, above=True)] = 0.1
    pair: Annotated[tuple[float, float], Bounds(0, 1, below=True)] = (0.1, 0.2)
    count: Count = 1
    free: int = -1

    def __post_init__(self) -> None:
        check_bounds(self)


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        (Bounds(1), "1 or more", (1, 10**9), (0, -1)),
        (Bounds(0, above=True), "more than 0", (1e-9, 3.0), (0.0, -1.0)),
        (Bounds(0, 1), "0 to 1", (0, 1), (-0.1, 1.1)),
        (Bounds(0, 1, above=True), "more than 0 to 1", (1.0,), (0.0, 1.1)),
        (Bounds(0, 0.5, below=True), "0 to below 0.5", (0.0, 0.4), (0.5,)),
    ],
)
def test_bounds(bounds: Bounds, words: str, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    assert str(bounds) == words
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in (*outside, float("nan"), float("inf"), float("-inf")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0, expected more than 0"),
        ({"rate": float("nan")}, "rate is nan, expected more than 0"),
        ({"pair": (0.5, 1.0)}, r"pair is \[0.5, 1.0\], expected each 0 to below 1"),
        ({"count": 0, "free": -5}, "count is 0, expected 1 or more"),
    ],
)
def test_a_number_outside_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Sample(**values)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_number_of_a_config_has_bounds(config: type[Any]) -> None:
    numbers = {name: hint for name, hint in get_type_hints(config, include_extras=True).items() if hint in (int, float)}
    own_words = {"encoder_layer", "levels"} if config is NativeConfig else set[str]()  # checked against other fields
    assert numbers.keys() == own_words
    assert bounds_of(CountOrZero) == Bounds(0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr=-1", "lr is -1.0, expected more than 0"),
        ("lr=nan", "lr is nan, expected more than 0"),
        ("lr=inf", "lr is inf, expected more than 0"),
        ("betas=[2.0, 3.0]", "betas is [2.0, 3.0], expected each 0 to below 1"),
        ("dropout=3", "dropout is 3.0, expected 0 to below 1"),
        ("heads=0", "heads is 0, expected 1 or more"),
        ("hidden=0", "hidden is 0, expected 1 or more"),
        ("hidden=-8", "hidden is -8, expected 1 or more"),
        ("clip=-1", "clip is -1.0, expected 0 or more"),
        ("weight_decay=-5", "weight_decay is -5.0, expected 0 or more"),
        ("jitter=-3", "jitter is -3.0, expected 0 to below 0.5"),
        ("warmup=-5", "warmup is -5, expected 0 or more"),
        ("sampling_points=0", "sampling_points is 0, expected 1 or more"),
        ("sampling_ratio=-1", "sampling_ratio is -1, expected 0 or more"),
        ("match_iou=7", "match_iou is 7.0, expected more than 0 to 1"),
        ("seed=-1", "seed is -1, expected 0 to 9223372036854775807"),
        ("roi=0", "roi is 0, expected 2 or more"),
    ],
)
def test_a_setting_outside_its_bounds_is_refused_in_words(setting: str, message: str) -> None:
    key, _, value = setting.partition("=")
    with pytest.raises(PipelineError) as caught:
        override(load_recipe("mask-frozen-detr"), {key: value})
    assert caught.value.message == f"the command line: {message}"


def test_sampling_as_many_as_there_are_cells_stays_allowed() -> None:
    assert override(load_recipe("mask-frozen-detr"), {"sampling_ratio": "0"}).head.sampling_ratio == 0
