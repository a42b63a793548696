"""Recipes: named ones load, settings of the command line win, mistakes name the nearest key."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.config import shipped
from pipeline.errors import PipelineError, UsageError
from pipeline.heads.registry import FAMILIES
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
