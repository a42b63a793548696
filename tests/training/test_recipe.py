"""Recipes: named ones load, settings of the command line win, mistakes name the nearest key."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from pipeline.config import shipped
from pipeline.errors import PipelineError, UsageError
from pipeline.heads.registry import FAMILIES
from pipeline.options import pairs
from pipeline.training.config import TrainConfig, learning_rate
from pipeline.training.recipe import Recipe, load_recipe, override


@pytest.mark.parametrize("name", sorted(shipped("heads")))
def test_every_shipped_head_loads_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert len(recipe.about) > 20


def test_settings_reach_head_and_training() -> None:
    recipe = override(
        load_recipe("mask-frozen-detr"), {"hidden": "64", "lr": "1e-3", "amp": "bf16", "views": '["orig"]'}
    )
    assert (recipe.head.hidden, recipe.train.lr, recipe.train.amp, recipe.train.views) == (64, 1e-3, "bf16", ("orig",))


def test_settings_from_python_are_values() -> None:
    values = {"hidden": 64, "lr": 1e-3, "mask_scoring": False, "views": ("orig",), "query_encoder": ["ffn"]}
    recipe = override(load_recipe("mask-frozen-detr"), values)
    words = {"hidden": "64", "lr": "1e-3", "mask_scoring": "false", "views": '["orig"]', "query_encoder": '["ffn"]'}
    assert recipe == override(load_recipe("mask-frozen-detr"), words)
    with pytest.raises(PipelineError, match="hidden is 'wide'"):
        override(load_recipe("unet"), {"hidden": "wide"})


def test_defaults_are_the_papers() -> None:
    train = load_recipe("mask-frozen-detr").train
    assert (train.lr, train.betas, train.weight_decay, train.steps) == (1.5e-4, (0.9, 0.999), 5e-5, 88_500)
    assert [learning_rate(train, step) for step in (0, 79_649, 79_650, 84_074, 84_075)] == pytest.approx(
        [1.5e-4, 1.5e-4, 1.5e-5, 1.5e-5, 1.5e-6]
    )


def test_the_learning_rate_drops_where_and_as_far_as_it_is_told() -> None:
    config = TrainConfig(steps=100, lr=1.0, milestones=(0.5, 0.75, 0.8), gamma=0.5)
    assert [learning_rate(config, step) for step in (0, 49, 50, 75, 80, 99)] == [1, 1, 0.5, 0.25, 0.125, 0.125]
    assert learning_rate(TrainConfig(steps=100, lr=1.0, milestones=()), 99) == 1
    assert learning_rate(TrainConfig(steps=100, lr=1.0), 99) == 0.01  # 0.1 * 0.1 is more


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"match": "overlap", "cost_class": "1"}, "cost_class goes with match = 'hungarian'"),
        ({"match": "overlap", "cost_bbox": "1"}, "cost_bbox goes with match = 'hungarian'"),
        ({"match": "overlap", "cost_giou": "1"}, "cost_giou goes with match = 'hungarian'"),
        ({"cost_class": "0", "cost_bbox": "0", "cost_giou": "0"}, "are all 0"),
        ({"schedule": "cosine", "milestones": "[0.5]"}, "milestones goes with schedule = 'step'"),
        ({"schedule": "cosine", "gamma": "0.5"}, "gamma goes with schedule = 'step'"),
        ({"scoring_weight": "0", "scoring_loss": "l1"}, "scoring_loss goes with a scoring_weight"),
        ({"milestones": "[0.5, 1.0]"}, r"milestones is \[0.5, 1.0\], expected each more than 0 to below 1"),
        ({"loss_grid": "0"}, "loss_grid is 0, expected 1 or more"),
        ({"cost_giou": "-1"}, "cost_giou is -1.0, expected 0 or more"),
    ],
)
def test_settings_that_could_change_nothing_are_refused(words: dict[str, str], named: str) -> None:
    with pytest.raises(PipelineError, match=named):
        override(load_recipe("mask-frozen-detr"), words)


def test_warmup_and_cosine() -> None:
    config = TrainConfig(steps=110, warmup=10, lr=1.0, schedule="cosine")
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 60) == pytest.approx(0.5)
    assert learning_rate(config, 109) < 1e-3


def test_unknown_setting_and_head_suggest_the_nearest() -> None:
    with pytest.raises(UsageError, match="hidden"):
        override(load_recipe("mask-frozen-detr"), {"hiden": "64"})
    with pytest.raises(UsageError, match="unet"):
        load_recipe("unett")
    with pytest.raises(PipelineError, match="lr"):
        override(load_recipe("unet"), {"lr": "fast"})


def test_unknown_key_of_a_file_names_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('family = "mask-frozen-detr"\n[head]\nneckk = true\n')
    with pytest.raises(PipelineError, match=r"mine.toml.*neckk[\s\S]*'neck'"):
        load_recipe(str(file))


def test_a_family_that_does_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('family = "mask-frozen"\n')
    with pytest.raises(UsageError, match="mask-frozen-detr"):
        load_recipe(str(file))


def test_json_round_trip() -> None:
    recipe = override(load_recipe("unet"), {"views": '["hflip"]', "seed": "3"})
    assert Recipe.from_json(json.loads(json.dumps(asdict(recipe)))) == recipe


FIELDS = [
    *((family, config, name) for family, (config, _) in FAMILIES.items() for name in config.__dataclass_fields__),
    *(("mask-frozen-detr", TrainConfig, name) for name in TrainConfig.__dataclass_fields__),
]
BESIDE = {
    ("mask-frozen-detr", "c1"): {"neck": "false"},
    ("mask-frozen-detr", "query_modulation"): {"box_encoder": "unet"},
    ("mask-frozen-detr", "detection_weight"): {"finetune": "all"},
    ("mask-dino", "start"): {"denoising": "0"},
    ("mask-dino", "residual"): {"interaction_layers": "1"},
}
"""What else has to be set for a field to have another value."""


def another(hint: Any, value: Any) -> Any:
    """A value of the type that is not this one."""
    if isinstance(value, bool):
        return not value
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(value, tuple):
        kind = get_args(hint)[0]
        if get_origin(kind) is Literal:
            return get_args(kind)[:1]
        return tuple(another(kind, one) for one in value) or ("orig",)
    return (value / 2 or 0.25) if isinstance(value, float) else (2 * abs(value) or 2)


def word(value: Any) -> str:
    """As a person types it."""
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize(("family", "config", "name"), FIELDS, ids=[f"{f}-{c.__name__}-{n}" for f, c, n in FIELDS])
def test_every_field_of_both_tables_can_be_set_by_a_word(family: str, config: type[Any], name: str) -> None:
    value = another(get_type_hints(config)[name], getattr(config(), name))
    words = pairs([f"{key}={text}" for key, text in {**BESIDE.get((family, name), {}), name: word(value)}.items()])
    recipe = override(load_recipe(family), words)
    assert getattr(recipe.train if config is TrainConfig else recipe.head, name) == value
    assert value != getattr(config(), name)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_field_of_a_head_has_the_name_of_one_of_the_training(family: str) -> None:
    """A setting names a field alone: of two with one name, one could not be set."""
    config, _ = FAMILIES[family]
    assert not config.__dataclass_fields__.keys() & TrainConfig.__dataclass_fields__.keys()


def test_the_share_of_points_in_the_loss_can_be_set() -> None:
    recipe = override(load_recipe("mask-frozen-detr"), {"points": "0.5", "sampling_points": "2"})
    assert (recipe.train.points, recipe.head.sampling_points) == (0.5, 2)


def test_a_run_of_before_reads_as_it_was_trained(tmp_path: Path) -> None:
    recipe = override(load_recipe("unet"), {"sampling_points": "2"})
    table = json.loads(json.dumps(asdict(recipe)))
    table["head"]["points"] = table["head"].pop("sampling_points")
    assert Recipe.from_json(table) == recipe
    file = tmp_path / "mine.toml"
    file.write_text('family = "mask-frozen-detr"\n[head]\npoints = 2\n')
    with pytest.raises(PipelineError, match=r"unknown key 'points'[\s\S]*'sampling_points'"):
        load_recipe(str(file))


def test_a_list_needs_no_brackets_on_the_command_line() -> None:
    words = {"views": "orig, hflip", "query_encoder": "ffn", "betas": "0.8,0.9"}
    recipe = override(load_recipe("mask-frozen-detr"), words)
    assert (recipe.train.views, recipe.head.query_encoder) == (("orig", "hflip"), ("ffn",))
    assert recipe.train.betas == (0.8, 0.9)
    twice = override(load_recipe("mask-frozen-detr"), {"views": "orig,hflip,orig"})
    assert twice.train.views == ("orig", "hflip")  # an image is not learnt from twice
    assert override(load_recipe("mask-frozen-detr"), {"query_encoder": ""}).head.query_encoder == ()
    with pytest.raises(PipelineError, match="betas is 1, expected a list"):
        override(load_recipe("mask-frozen-detr"), {"betas": "1"})
