"""A training that reads C1 under its boxes alone ends where one that reads everything does."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny, write_tiny
from torch import Tensor

from featcache import Cache, Entry
from featcache.record import Record
from pipeline import extract
from pipeline.data.sources import Cached
from pipeline.errors import PipelineError
from pipeline.heads.base import MaskHead, Widths
from pipeline.heads.mask_frozen_detr import MaskFrozenDetr
from pipeline.heads.registry import build_head
from pipeline.ops.roi_align_reference import level_weights
from pipeline.ops.roi_geometry import Geometry, rows_read
from pipeline.training.checkpoint import claim_run, describe_run
from pipeline.training.config import TrainConfig
from pipeline.training.recipe import load_recipe, override
from pipeline.training.rows import levels_in_part, rows_under_boxes
from pipeline.training.together import train_together
from pipeline.training.trainer import Trainer

LOCAL = {"hidden": "16", "roi": "8", "neck_path": "local", "steps": "6", "batch_size": "3", "log_every": "1"}
FEW = {"neck_path": "auto", "hidden": "8", "rois_per_image": "3"}
"""Of so narrow a head C1 is pooled first up to 3 boxes an image and no longer from 4 on."""


@pytest.fixture(scope="module")
def banded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures in two views, C1 of 16 rows in bands of two; one of them without an object."""
    folder = tmp_path_factory.mktemp("rows")
    tiny: Tiny = write_tiny(folder / "data")
    return extract.main(**tiny.arguments, cache=folder / "banded", views=("orig", "hflip"), c1_bands=8)


def test_bands_are_of_c1_alone_and_in_the_command_that_continues(banded: Path) -> None:
    spec = Cache(banded).spec
    assert {level.name: (level.bands, level.band_rows) for level in spec.levels} == {
        "c1": (8, 2),
        "e8": (1, None),
        "e16": (1, None),
    }
    assert "--c1-bands 8" in spec.recipe["command"]


@pytest.fixture
def holes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was not read is NaN, not zero; gives (cells read, cells there) of every C1 that was read in part."""
    counts: list[tuple[int, int]] = []
    decode = Cache.decode

    def poisoned(self: Cache, record: Record, *args: Any) -> Entry:
        entry = decode(self, record, *args)
        for name, runs in record.read.items():
            cells = entry.maps[name].permute(1, 2, 0).flatten(0, 1)
            unread = torch.ones(len(cells), dtype=torch.bool)
            for run in runs:
                unread[run.start : run.stop] = False
            assert not cells[unread].any()
            cells[unread] = torch.nan
            entry.maps[name][:] = cells.view(*entry.maps[name].shape[1:], -1).permute(2, 0, 1)
            counts.append((int((~unread).sum()), len(cells)))
        return entry

    monkeypatch.setattr(Cache, "decode", poisoned)
    return counts


def trained(cache: Path, folder: Path, *rows: dict[str, str]) -> list[dict[str, Tensor]]:
    """The weights that each of these heads ends with, one pass for all."""
    source = Cached(cache)
    trainers: list[Trainer] = []
    for number, settings in enumerate(rows):
        run = describe_run(override(load_recipe("mask-frozen-detr"), {**LOCAL, **settings}), source.spec)
        claim_run(folder / str(number), run)
        trainers.append(Trainer(folder / str(number), run, torch.device("cpu")))
    train_together(source, trainers)
    return [torch.load(folder / str(number) / "head.pt", weights_only=True) for number in range(len(rows))]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"match": "overlap", "match_iou": "0.05", "jitter": "0.2"},
        {"neck": "false"},
        {"roi_boxes": "truth", "jitter": "0.2"},
        {"cost_class": "0", "cost_bbox": "0.1", "aligned": "false"},
        {"micro_batch": "1"},
        {"neck_path": "auto"},
        FEW,
    ],
    ids=[
        "hungarian",
        "overlap and jitter",
        "no neck",
        "in the objects' boxes",
        "other costs",
        "one by one",
        "auto",
        "auto, few boxes",
    ],
)
def test_the_weights_are_those_of_reading_everything(
    banded: Path,
    tmp_path: Path,
    settings: dict[str, str],
    holes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (partly,) = trained(banded, tmp_path / "partly", settings)
    read, there = (sum(column) for column in zip(*holes, strict=True))
    assert 0 < read < there
    holes.clear()
    monkeypatch.setattr("pipeline.training.together.rows_under_boxes", lambda heads, source: None)
    (wholly,) = trained(banded, tmp_path / "wholly", settings)
    assert not holes
    for name, values in wholly.items():
        assert torch.equal(partly[name], values), name


def test_heads_of_one_pass_get_the_rows_of_all(banded: Path, tmp_path: Path, holes: list[tuple[int, int]]) -> None:
    wide = {"match": "overlap", "match_iou": "0.05", "jitter": "0.2"}
    alone = [trained(banded, tmp_path / str(i), one)[0] for i, one in enumerate(({}, wide))]
    together = trained(banded, tmp_path / "both", {}, wide)
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    in_truth = {"roi_boxes": "truth"}
    (lone,), (_, beside) = trained(banded, tmp_path / "lone", in_truth), trained(banded, tmp_path / "2", {}, in_truth)
    assert all(torch.equal(lone[name], beside[name]) for name in lone)
    holes.clear()
    trained(banded, tmp_path / "mixed", {}, {"neck_path": "auto", "hidden": "8"})
    assert not holes  # the second may want the whole map
    (beside, _) = trained(banded, tmp_path / "beside", {}, {"c1": "false", "neck": "false"})
    assert holes  # the second wants nothing of it
    assert all(torch.equal(alone[0][name], beside[name]) for name in beside)


def head_of(cache: Path, **settings: str) -> tuple[MaskHead, TrainConfig]:
    recipe = override(load_recipe("mask-frozen-detr"), {**LOCAL, **settings})
    return build_head(recipe.family, recipe.head, Widths.of_cache(Cache(cache).spec)), recipe.train


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({"neck_path": "full"}, {}),
        ({"neck_path": "auto", "hidden": "8"}, {}),
        ({"neck_path": "auto", "hidden": "8", "neck": "false", "rois_per_image": "1"}, {}),
        ({"c1": "false", "neck": "false"}, {}),
        ({}, {"moments": False}),
        ({}, {"band_rows": None}),
        ({}, {"band_rows": 99}),
    ],
)
def test_everything_is_read_where_a_head_needs_it(
    banded: Path, settings: dict[str, str], level: dict[str, Any]
) -> None:
    source = Cached(banded)
    assert rows_under_boxes([head_of(banded)], source) is not None
    levels = tuple(replace(one, **level) if one.name == "c1" else one for one in source.spec.levels)
    source.spec = replace(source.spec, levels=levels)
    assert rows_under_boxes([head_of(banded, **settings)], source) is None


def test_auto_reads_rows_where_no_batch_could_want_the_map(banded: Path) -> None:
    """Images of any size and number of boxes: what is promised of each alone holds for those of its size together."""
    spec = Cache(banded).spec
    for settings in ({"hidden": "8"}, {"hidden": "16"}, {"hidden": "8", "neck": "false"}):
        head, _ = head_of(banded, neck_path="auto", **settings)
        assert isinstance(head, MaskFrozenDetr)
        for side in (16, 32, 64, 96):
            cells = (side // 4) ** 2
            for most in range(1, 9):
                promised = "c1" in head.maps_under_boxes(spec, (side, side), most)
                batches = [boxes for b in (1, 2, 3) for boxes in itertools.product(range(most + 1), repeat=b)]
                sizes = {"channels": 8, "neck": head.neck is not None, "moments": True, "learning": True}
                local = [
                    head._pools_first(cells=len(boxes) * cells, bins=64 * sum(boxes), **sizes) for boxes in batches
                ]
                assert promised == all(local)
    few = levels_in_part([head_of(banded, **FEW)], spec, (64, 64))
    assert (few, levels_in_part([head_of(banded, **FEW)], spec, (48, 64))) == ({"c1"}, frozenset())


def test_a_head_that_needs_the_map_refuses_a_part_of_it(banded: Path) -> None:
    source = Cached(banded)
    wanted = rows_under_boxes([head_of(banded)], source)
    stream = source.stream(2, views=("orig",), indices=[0, 1], seed=0, wanted=wanted)
    batch = next(iter(stream))
    assert batch.features.partial == {"c1"}
    head, config = head_of(banded, neck_path="full")
    generator = torch.Generator()
    targets = head.targets(batch, source.categories, config, generator)
    with pytest.raises(PipelineError, match="under the boxes alone"):
        head.loss(batch, targets, config, generator)


@pytest.mark.parametrize(("stride", "h"), [(4.0, 25), (8.0, 13), (2.5, 40)])
@pytest.mark.parametrize("aligned", [True, False])
def test_rows_read_holds_every_row_with_weight(stride: float, h: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    edges = 160 * torch.rand(400, 2, generator=generator).sort(1).values - 30  # some beyond the image
    boxes = torch.stack([torch.zeros(400), edges[:, 0], torch.full((400,), 9.0), edges[:, 1]], 1)
    for ratio in (0, 1, 2):
        geometry = Geometry((len(boxes),), (((h, 3),),), (stride,), 7, aligned, ratio, False)
        weights, _ = level_weights(boxes, geometry, 0, 0)
        for (top, bottom), rows in zip(edges.tolist(), (weights != 0).any(1), strict=True):
            first, last = rows_read(top, bottom, stride, h)
            assert 0 <= first < last <= h
            assert not rows[:first].any()
            assert not rows[last:].any()
            assert last - first < (bottom - top) / stride + 5.5  # two of the stencil, two to spare, rounded outwards
