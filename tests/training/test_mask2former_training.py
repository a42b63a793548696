"""The mask2former family in stage 2: its loss falls on a small cache, a stopped run ends as one that was not."""

import json
from pathlib import Path

import pytest
import torch
from discs import write_discs
from power_cut import power_cut

from pipeline import evaluate, train
from pipeline.data.sources import Cached
from pipeline.training.checkpoint import load_head

SETTINGS = {
    "steps": "30", "batch_size": "3", "lr": "3e-3", "clip": "1.0", "schedule": "cosine", "log_every": "1",
    "checkpoint_every": "5", "hidden": "16", "heads": "2", "feed_forward": "32", "layers": "2", "queries": "6",
    "mask_points": "128",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("mask2former") / "cache")


def curve(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("start", ["learned", "detector"])
def test_thirty_steps_lower_every_term(cache: Path, tmp_path: Path, start: str) -> None:
    run = train.main(cache=cache, head="mask2former", run=tmp_path / "run", settings={**SETTINGS, "start": start})
    lines = curve(run)
    for term in ("loss", "class", "bce", "dice"):
        first, last = (sum(line[term] for line in part) / 5 for part in (lines[:5], lines[-5:]))
        assert last < 0.9 * first, term
    head, _ = load_head(run)
    source = Cached(cache)
    batch = source.batch([(0, "orig"), (1, "hflip")])
    for masks in head.predict(batch.features, batch.counts):
        assert masks.mask_logits.shape[1:] == (16, 16)
        assert len(masks.scores) == 12  # six queries, two classes
        assert (masks.scores[:-1] >= masks.scores[1:]).all()
        assert ((masks.boxes >= 0) & (masks.boxes <= 1)).all()
    metrics = evaluate.main(cache=cache, run=run)
    assert metrics["bbox"]["AP"] == pytest.approx(100)  # of the frozen detector, though the head has boxes of its own
    assert 0 <= metrics["segm"]["AP"] <= 100
    assert {len(result["segmentation"]["size"]) for result in json.loads((run / "results.json").read_text())} == {2}


def test_stopped_and_continued_equals_uninterrupted(cache: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "steps": "12", "start": "detector", "ema": "0.9", "micro_batch": "2"}
    whole = train.main(cache=cache, head="mask2former", run=tmp_path / "whole", settings=settings)
    stopped = tmp_path / "stopped"
    with power_cut(after=7):
        train.main(cache=cache, head="mask2former", run=stopped, settings=settings)
    train.main(cache=cache, head="mask2former", run=stopped, settings=settings)
    first, second = (torch.load(run / "head.pt", weights_only=True) for run in (whole, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first)
