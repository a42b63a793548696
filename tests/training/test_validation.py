"""Evaluation on the way: it tells what `evaluate` tells, keeps the best weights, and the training does not notice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from discs import write_discs
from power_cut import power_cut

from pipeline import evaluate, train
from pipeline.errors import PipelineError, UsageError
from pipeline.heads.base import MaskHead
from pipeline.training.checkpoint import load_head
from pipeline.training.track import best_step, read_track, validations
from pipeline.training.validation import Validation, evaluating

SETTINGS = {
    "steps": "8", "batch_size": "2", "roi": "8", "log_every": "2", "checkpoint_every": "100", "hidden": "8",
    "ema": "0.5", "dropout": "0.2", "jitter": "0.1", "lr": "0.01", "amp": "off",
}  # fmt: skip
EVERY = {**SETTINGS, "evaluate_every": "3"}
HEAD = "mask-frozen-detr"


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """To learn from, and to evaluate on."""
    folder = tmp_path_factory.mktemp("validation")
    return write_discs(folder / "cache"), write_discs(folder / "val", images=3, seed=1)


@pytest.fixture(scope="module")
def run(caches: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was evaluated on the way."""
    folder = tmp_path_factory.mktemp("validation") / "run"
    return train.main(cache=caches[0], val_cache=caches[1], head=HEAD, run=folder, settings=EVERY)


def same(first: Any, second: Any) -> bool:
    """Whether two checkpoints hold the same, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return first == second


def load(run: Path, name: str) -> Any:
    return torch.load(run / name, weights_only=True)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_track(run) if "loss" in row]


def figures(run: Path) -> list[Any]:
    return [(row["step"], row["val"], row["best"]) for row in validations(run)]


def test_the_training_does_not_notice(caches: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    """Weights, averages, optimiser, random numbers, place in the cache, curve: as without any evaluation."""
    plain = train.main(cache=caches[0], head=HEAD, run=tmp_path / "plain", settings=SETTINGS)
    assert same(load(plain, "checkpoint.pt"), load(run, "checkpoint.pt"))
    assert same(load(plain, "head.pt"), load(run, "head.pt"))
    assert losses(plain) == losses(run)
    assert len(losses(run)) == 4
    assert validations(plain) == []
    assert not (plain / "best.pt").exists()


def test_every_n_steps_and_the_last(run: Path) -> None:
    assert [row["step"] for row in validations(run)] == [3, 6, 8]
    assert {"AP", "AP50", "AP75", "AR100", "mask_iou"} <= set(validations(run)[0]["val"])


def test_the_figures_are_those_of_evaluate(caches: tuple[Path, Path], run: Path) -> None:
    """The averaged weights, which are the result, in eval mode."""
    metrics = evaluate.main(cache=caches[1], run=run)
    assert validations(run)[-1]["val"] == {**metrics["segm"], "mask_iou": metrics["mask_iou"]}
    assert metrics["segm"]["AP"] > 0
    best = evaluate.main(cache=caches[1], run=run, best=True)
    curve = {row["step"]: row["val"]["AP"] for row in validations(run)}
    assert len(set(curve.values())) > 1
    assert best["segm"]["AP"] == max(curve.values())
    assert curve[best_step(run) or 0] == max(curve.values())
    identity = json.loads((run / "evaluated.json").read_text())["identity"]
    assert identity["weights"] == f"best, of step {best_step(run)}"


def test_the_last_evaluation_is_that_of_the_result(
    caches: tuple[Path, Path], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are those that `evaluate` writes; `train --val-cache` shows its figures and evaluates nothing again."""
    names = ("metrics.json", "results.json", "boxes.json", "quality.json", "evaluated.json", "metrics/lost_ap.json")
    evaluate.main(cache=caches[1], run=run)
    expected = {name: (run / name).read_bytes() for name in names}
    for name in names:
        (run / name).unlink()
    folder = run.with_name("again")
    train.main(cache=caches[0], val_cache=caches[1], head=HEAD, run=folder, settings=EVERY)
    assert {name: (folder / name).read_bytes() for name in names} == expected
    monkeypatch.setattr(evaluate, "main", None)
    assert train.figures(folder, caches[1]) == json.loads(expected["metrics.json"])
    evaluations = [row["step"] for row in validations(folder)]
    assert evaluations == [3, 6, 8]


def test_only_better_weights_take_the_place_of_the_best(
    caches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = iter([None, 30.0, 20.0, 30.0])

    def pretend(_source: object, contenders: Any, *_: object, **__: object) -> dict[Path, Any]:
        return {contenders[0].folder: {"segm": dict.fromkeys(("AP", "AP50", "AP75"), next(aps)), "mask_iou": None}}

    monkeypatch.setattr("pipeline.training.validation.evaluate_contenders", pretend)
    arguments: dict[str, Any] = {"cache": caches[0], "head": HEAD, "run": tmp_path / "run"}
    train.main(**arguments, val_cache=caches[1], settings={**EVERY, "evaluate_every": "2"})
    assert [row["best"] for row in validations(tmp_path / "run")] == [True, True, False, False]
    assert best_step(tmp_path / "run") == 4
    assert not same(load(tmp_path / "run", "best.pt"), load(tmp_path / "run", "head.pt"))
    stopped = tmp_path / "4"
    settings = {**SETTINGS, "checkpoint_every": "1"}
    with power_cut(after=4):
        train.main(cache=caches[0], head=HEAD, run=stopped, settings=settings)
    assert same(load(tmp_path / "run", "best.pt"), load(stopped, "checkpoint.pt")["averaged"])


@pytest.mark.parametrize("calls", [1, 2])
def test_killed_in_an_evaluation(caches: tuple[Path, Path], run: Path, tmp_path: Path, calls: int) -> None:
    """Of step 6 or of the last: the run goes on from that very step, and ends as one that nobody killed."""
    arguments: dict[str, Any] = {"cache": caches[0], "val_cache": caches[1], "head": HEAD, "settings": EVERY}
    with power_cut(after=calls, kind=Validation, method="evaluate"):
        train.main(**arguments, run=tmp_path / "run")
    step = (6, 8)[calls - 1]
    assert load(tmp_path / "run", "checkpoint.pt")["step"] == step
    assert not (tmp_path / "run" / "head.pt").exists()
    train.main(**arguments, run=tmp_path / "run")
    assert figures(tmp_path / "run") == figures(run)
    assert losses(tmp_path / "run") == losses(run)
    for name in ("checkpoint.pt", "head.pt", "best.pt"):
        assert same(load(tmp_path / "run", name), load(run, name)), name


def test_every_part_has_its_own_mode_again(run: Path) -> None:
    head, _ = load_head(run)
    head.train()
    next(head.children()).eval()
    modes = [part.training for part in head.modules()]
    assert len(set(modes)) == 2
    with evaluating(head, amp=True):
        assert head.amp
        assert not any(part.training for part in head.modules())
    assert [part.training for part in head.modules()] == modes
    assert not head.amp


def test_masks_that_are_not_numbers_stop_with_the_image(
    caches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may leave weights that no later loss tells of: the evaluation does, in training and after it."""
    run = train.main(cache=caches[0], head=HEAD, run=tmp_path / "run", settings={**SETTINGS, "steps": "1"})
    spoilt = {name: value * float("nan") if value.is_floating_point() else value
              for name, value in load(run, "head.pt").items()}  # fmt: skip
    torch.save(spoilt, run / "head.pt")
    with pytest.raises(PipelineError, match="masks of image 10 are not numbers"):
        evaluate.main(cache=caches[1], run=run)
    predict = MaskHead.predict

    def failing(self: MaskHead, *arguments: Any) -> Any:
        with torch.inference_mode():
            for parameter in self.parameters():
                parameter.mul_(float("nan"))
        return predict(self, *arguments)

    monkeypatch.setattr(MaskHead, "predict", failing)
    with pytest.raises(PipelineError, match="masks of image 10 are not numbers"):
        train.main(cache=caches[0], val_cache=caches[1], head=HEAD, run=tmp_path / "other", settings=EVERY)


def test_what_cannot_be_is_refused_before_the_first_step(caches: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"cache": caches[0], "head": HEAD, "run": tmp_path / "run"}
    with pytest.raises(UsageError, match="evaluate_every needs a cache"):
        train.main(**arguments, settings=EVERY)
    other = write_discs(tmp_path / "other", name="another")
    with pytest.raises(PipelineError, match=r"val-cache .* name is 'another'"):
        train.main(**arguments, val_cache=other, settings=EVERY)
    assert not (tmp_path / "run").exists()
    with pytest.raises(PipelineError, match="evaluate_every is -1"):
        train.main(**arguments, val_cache=caches[1], settings={**EVERY, "evaluate_every": "-1"})
    with pytest.raises(PipelineError, match="evaluate_every goes with finetune"):
        train.main(**arguments, val_cache=caches[1], settings={**EVERY, "finetune": "all"})
    plain = train.main(**arguments, settings={**SETTINGS, "steps": "1"})
    with pytest.raises(PipelineError, match=r"no best\.pt"):
        evaluate.main(cache=caches[1], run=plain, best=True)
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "head.pt").unlink()
    with pytest.raises(PipelineError, match="evaluated on another cache"):
        train.main(cache=caches[0], val_cache=caches[0], head=HEAD, run=copy, settings=EVERY)
