"""Mask DINO and DI-MaskDINO in stage 2: every term falls on a small cache, a stopped run ends as one that was not."""

import json
from pathlib import Path

import pytest
import torch
from discs import write_discs

from pipeline import evaluate, train
from pipeline.data.sources import Cached
from pipeline.training.checkpoint import load_head
from pipeline.training.trainer import Trainer

SETTINGS = {
    "steps": "40", "batch_size": "3", "lr": "3e-3", "clip": "1.0", "schedule": "cosine", "log_every": "1",
    "checkpoint_every": "5", "hidden": "16", "heads": "2", "feed_forward": "32", "layers": "2", "queries": "6",
    "points": "2", "mask_points": "128", "denoising": "8",
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


def test_stopped_and_continued_equals_uninterrupted(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise, points and weights all follow from the seed."""
    settings = SETTINGS | FAMILY["di-maskdino"] | {"steps": "12", "ema": "0.9", "micro_batch": "2"}
    whole = train.main(cache=cache, head="di-maskdino", run=tmp_path / "whole", settings=settings)
    step, calls = Trainer.step, iter(range(7))

    def dying(self: Trainer, *args: object) -> object:
        if next(calls, None) is None:
            raise RuntimeError("power cut")
        return step(self, *args)  # pyright: ignore[reportArgumentType]

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            train.main(cache=cache, head="di-maskdino", run=stopped, settings=settings)
    train.main(cache=cache, head="di-maskdino", run=stopped, settings=settings)
    first, second = (torch.load(run / "head.pt", weights_only=True) for run in (whole, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first)
