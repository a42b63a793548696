"""Ablations: rows are base head, settings of the table and settings of the row; mistakes name file and row."""

from pathlib import Path

import pytest
import torch
from detectors.native_toys import write_toy
from discs import write_discs

from featcache import CacheSpec
from pipeline.config import read_toml, shipped
from pipeline.data.sources import Cached
from pipeline.data.views import check_view
from pipeline.detectors.base import source_of
from pipeline.errors import PipelineError
from pipeline.heads.base import Widths, encoder_maps
from pipeline.heads.registry import build_head
from pipeline.training.ablation import CELLS, load_ablation
from pipeline.training.plan import plan
from pipeline.training.recipe import change, load_recipe

TAPS = ("encoder_layer", "extra_encoder_layers")

SMALL = """
about = "two heads"
detector = "hdetr-r50"
head = "mask-frozen-detr"
[settings]
neck = false
steps = 100
[[rows]]
name = "wide"
settings = { hidden = 256, steps = 200 }
paper = { AP = 45, params = 1.5 }
[[rows]]
name = "baseline"
head = "baseline"
detector = "hdetr-swin-l"
"""


def write(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("name", sorted(shipped("ablations")))
def test_every_shipped_table_loads(name: str) -> None:
    ablation = load_ablation(name)
    assert ablation.name == name
    assert bool(ablation.columns) == name.startswith("table")  # the paper's; ours have nothing published
    for row in ablation.rows:
        assert row.recipe.name == row.name
        assert row.paper.keys() <= set(CELLS)


def test_a_row_wins_over_the_table_and_the_table_over_the_head(tmp_path: Path) -> None:
    text = SMALL.replace('[[rows]]\nname = "baseline"\nhead = "baseline"', '[[rows]]\nname = "plain"')
    ablation = load_ablation(write(tmp_path, text))
    wide, plain = ablation.rows
    base = load_recipe("mask-frozen-detr")
    assert (wide.recipe.head.hidden, wide.recipe.head.neck, wide.recipe.train.steps) == (256, False, 200)
    assert (plain.recipe.head.hidden, plain.recipe.train.steps) == (base.head.hidden, 100)
    assert (wide.detector, plain.detector) == ("hdetr-r50", "hdetr-swin-l")
    assert wide.paper == {"AP": 45.0, "params": 1.5}
    assert ablation.columns == ("AP", "params")


def test_a_row_may_have_another_head_and_takes_the_settings_it_knows(tmp_path: Path) -> None:
    wide, baseline = load_ablation(write(tmp_path, SMALL.replace("neck = false", "neck = false\nroi = 16"))).rows
    assert (wide.recipe.family, baseline.recipe.family) == ("mask-frozen-detr", "baseline")
    assert (wide.recipe.head.roi, wide.recipe.head.neck) == (16, False)
    assert (baseline.recipe.head.roi, baseline.recipe.train.steps) == (16, 100)


def test_a_head_beside_the_ablation_is_found(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('family = "baseline"\n[head]\nroi = 16\n')
    text = SMALL.replace('head = "baseline"', 'head = "own.toml"')
    assert load_ablation(write(tmp_path, text)).rows[1].recipe.head.roi == 16


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "baseline"', 'name = "wide"', "two rows are named 'wide'"),
        ("hidden = 256", "hiden = 256", r"row 'wide': unknown setting 'hiden'[\s\S]*'hidden'"),
        ("hidden = 256", "hidden = 25", "row 'wide': hidden 25 is not a multiple"),
        ("AP = 45", "Ap = 45", r"row 'wide': paper: Ap[\s\S]*'AP'"),
        ("AP = 45", 'AP = "high"', "row 'wide': paper: AP"),
        ('head = "baseline"', 'head = "base"', "baseline"),
        ('head = "baseline"', 'heads = "baseline"', r"unknown key 'heads'[\s\S]*'head'"),
        ("neck = false", "nek = false", r"row 'wide': unknown setting 'nek'[\s\S]*'neck'"),
        (
            'name = "baseline"',
            'name = "baseline"\nsettings = { neck = true }',
            "row 'baseline': unknown setting 'neck'",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        load_ablation(write(tmp_path, SMALL.replace(old, new)))


def test_an_unknown_table_suggests_the_nearest() -> None:
    with pytest.raises(PipelineError, match="table05"):
        load_ablation("tabel05")


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no rows"):
        load_ablation(write(tmp_path, 'about = ""\ndetector = "a"\nhead = "unet"\nrows = []\n'))


def test_the_rows_of_table_15_read_three_layers_of_the_cache_that_its_detector_gives(tmp_path: Path) -> None:
    """By a small network with the taps of the shipped config: three sets of maps, a row for each of them."""
    taps = {key: read_toml(shipped("detectors")["hdetr-r50-layers"])[key] for key in TAPS}
    toy = write_toy(tmp_path, encoder_layers=6, levels=4)
    detector = toy.build(**taps)
    names = [level.name for level in detector.levels]
    assert names == ["c1", *(f"e{s}{layer}" for layer in ("", "_l2", "_l6") for s in (8, 16, 32, 64))]
    spec = CacheSpec(
        detector.levels,
        detector.detections,
        detector.query_dim,
        source=source_of(detector),
        recipe={"categories": [{"id": 1, "name": "thing"}] * detector.classes},
    )
    widths, ablation = Widths.of_cache(spec), load_ablation("table15")
    read = [encoder_maps(widths, row.recipe.head.encoder_layer) for row in ablation.rows]
    assert read == [("e8_l2", "e16_l2", "e32_l2", "e64_l2"), ("e8", "e16", "e32", "e64"), ("e8_l6", *names[-3:])]
    features = detector.detect(torch.randn(1, 3, 96, 128))
    for row in ablation.rows:
        recipe = change(row.recipe, {"hidden": 32, "roi": 8}, "here")
        head = build_head(recipe.family, recipe.head, widths).eval()
        assert head.predict(features)[0].mask_logits.shape == (20, 8, 8)
    assert {row.detector for row in ablation.rows} == {"hdetr-r50-layers"}


def test_the_layers_detector_is_hdetr_r50_but_for_what_it_stores() -> None:
    plain, layers = (read_toml(shipped("detectors")[name]) for name in ("hdetr-r50", "hdetr-r50-layers"))
    assert layers.pop("extra_encoder_layers") == [2, 6]
    assert {key for key in plain if plain[key] != layers[key]} == {"name", "summary"}
    assert plain.keys() == layers.keys()


def test_table_13_trains_on_views_that_can_be_extracted() -> None:
    plain, jittered = load_ablation("table13").rows
    assert plain.recipe.train.views == ("orig",)
    assert set(plain.recipe.train.views) < set(jittered.recipe.train.views)
    assert all(check_view(name).startswith("lsj") for name in jittered.recipe.train.views[1:])
    assert (jittered.paper["AP"], jittered.paper["gpu_hours"]) == (46.0, 63)


def test_a_row_whose_views_the_cache_lacks_says_which(tmp_path: Path) -> None:
    source = Cached(write_discs(tmp_path / "cache"))
    _, (plain, jittered) = plan("table13", source, tmp_path, steps="2", seeds=(), settings={"warmup": "0"})
    assert not plain.problem
    assert not jittered.learns
    assert "no view lsj1, lsj2, lsj3, lsj4, lsj5, only orig, hflip" in jittered.problem
    assert "--views orig,lsj1,lsj2,lsj3,lsj4,lsj5" in jittered.problem
