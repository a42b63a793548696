"""Mask DINO and DI-MaskDINO in stage 2: every term falls on a small cache, a stopped run ends as one that was not."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from discs import write_discs
from power_cut import power_cut

from pipeline import evaluate, train
from pipeline.data.sources import Cached
from pipeline.data.views import resolve
from pipeline.detectors.base import Features
from pipeline.heads.base import Widths
from pipeline.heads.mask_dino import MaskDino, MaskDinoConfig
from pipeline.training.checkpoint import load_head
from pipeline.training.config import TrainConfig
from pipeline.training.view_objects import ViewObjects

SETTINGS = {
    "steps": "40", "batch_size": "3", "lr": "3e-3", "clip": "1.0", "schedule": "cosine", "log_every": "1",
    "checkpoint_every": "5", "hidden": "16", "heads": "2", "feed_forward": "32", "layers": "2", "queries": "6",
    "sampling_points": "2", "mask_points": "128", "denoising": "8",
}  # fmt: skip
FAMILY = {
    "mask-dino": {},
    "di-maskdino": {"first_selected": "10", "interaction_layers": "1", "guiding_tokens": "3"},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("mask_dino") / "cache")


def curve(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("head", FAMILY)
def test_forty_steps_lower_every_term(cache: Path, tmp_path: Path, head: str) -> None:
    run = train.main(cache=cache, head=head, run=tmp_path / "run", settings=SETTINGS | FAMILY[head])
    lines = curve(run)
    terms = ["loss", "class", "l1", "giou", "bce", "dice", "selected", "denoising"]
    terms += ["interaction"] * (head == "di-maskdino")
    for term in terms:
        first, last = (sum(line[term] for line in part) / 5 for part in (lines[:5], lines[-5:]))
        assert last < 0.9 * first, term
    assert lines[0]["loss"] == pytest.approx(sum(lines[0][term] for term in terms[1:]), rel=1e-5)
    model, _ = load_head(run)
    batch = Cached(cache).batch([(0, "orig"), (1, "hflip")])
    for masks in model.predict(batch.features, batch.counts):
        assert len(masks.scores) == 12  # six queries, two classes
        assert (masks.scores[:-1] >= masks.scores[1:]).all()
        assert ((masks.boxes >= 0) & (masks.boxes <= 1)).all()
    metrics = evaluate.main(cache=cache, run=run)
    assert metrics["bbox"]["AP"] == pytest.approx(100)  # of the frozen detector, though the head has boxes of its own
    assert 0 <= metrics["segm"]["AP"] <= 100


def test_stopped_and_continued_equals_uninterrupted(cache: Path, tmp_path: Path) -> None:
    """Noise, points and weights all follow from the seed."""
    settings = SETTINGS | FAMILY["di-maskdino"] | {"steps": "12", "ema": "0.9", "micro_batch": "2"}
    whole = train.main(cache=cache, head="di-maskdino", run=tmp_path / "whole", settings=settings)
    stopped = tmp_path / "stopped"
    with power_cut(after=7):
        train.main(cache=cache, head="di-maskdino", run=stopped, settings=settings)
    train.main(cache=cache, head="di-maskdino", run=stopped, settings=settings)
    first, second = (torch.load(run / "head.pt", weights_only=True) for run in (whole, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_images_of_several_sizes_share_a_loss() -> None:
    """Class and box terms of a batch are those of its images alone, each counted by its share of the objects."""
    torch.manual_seed(0)
    widths = Widths({"c1": 8, "e16": 8}, {"c1": 4, "e16": 16}, ("e16",), query_dim=8, classes=3)
    head = MaskDino(MaskDinoConfig(hidden=16, heads=2, feed_forward=16, layers=2, queries=9, denoising=0), widths)
    config = TrainConfig(bce_weight=0, dice_weight=0)  # no points then, so nothing is drawn that counts
    sizes, counts = [(64, 64), (48, 64), (64, 64)], [2, 1, 0]
    objects = [
        ViewObjects(
            labels=torch.randint(3, (count,)),
            boxes=torch.rand(count, 4) * 0.2 + 0.3,
            masks=torch.ones(count, 8, 8, dtype=torch.uint8),
            view=resolve("orig", 1, (8, 8)),
        )
        for count in counts
    ]
    features = features_of(widths, sizes)

    def loss(rows: list[int]) -> dict[str, torch.Tensor]:
        batch: Any = SimpleNamespace(features=features.rows(rows) if len(rows) == 1 else features)
        return head.loss(batch, [objects[row] for row in rows], config, torch.Generator())

    together = loss([0, 1, 2])
    alone = [loss([row]) for row in range(3)]
    for term in ("class", "l1", "giou", "selected"):
        expected = sum(max(1, count) * terms[term] for count, terms in zip(counts, alone, strict=True)) / sum(counts)
        torch.testing.assert_close(together[term], expected)


def features_of(widths: Widths, sizes: list[tuple[int, int]]) -> Features:
    """Random maps, zero in the padding."""
    maps = {name: torch.zeros(len(sizes), 8, 64 // stride, 64 // stride) for name, stride in widths.strides.items()}
    for name, stride in widths.strides.items():
        for row, (h, w) in enumerate(sizes):
            maps[name][row, :, : h // stride, : w // stride] = torch.randn(8, h // stride, w // stride)
    return Features(
        maps=maps,
        encoder=widths.encoder,
        strides=widths.strides,
        queries=torch.zeros(len(sizes), 1, 8),
        boxes=torch.zeros(len(sizes), 1, 4),
        scores=torch.zeros(len(sizes), 1),
        labels=torch.zeros(len(sizes), 1, dtype=torch.int64),
        input_hw=torch.tensor(sizes),
    )
