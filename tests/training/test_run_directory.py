"""What a run holds, and that a run that was stopped is in every state the one that was not."""

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from discs import write_discs
from power_cut import power_cut

from featcache import Cache
from pipeline import train
from pipeline.errors import PipelineError
from pipeline.training.checkpoint import code_version
from pipeline.training.log import Tee, logged
from pipeline.training.track import Track, read_track

SETTINGS = {
    "steps": "20", "batch_size": "2", "roi": "8", "log_every": "5", "checkpoint_every": "10", "hidden": "8",
    "ema": "0.9", "dropout": "0.2", "jitter": "0.1", "warmup": "4", "schedule": "cosine",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("run") / "cache")


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_ten_steps_and_ten_are_twenty(cache: Path, tmp_path: Path, amp: str) -> None:
    """Weights, averaged weights, optimiser, random numbers, place in the cache, learning rates and losses."""
    arguments: dict[str, Any] = {"cache": cache, "head": "mask-frozen-detr", "settings": {**SETTINGS, "amp": amp}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main(**arguments, run=whole)
    with power_cut(after=10):
        train.main(**arguments, run=parts)
    assert load(parts / "checkpoint.pt")["step"] == 10
    train.main(**arguments, run=parts)
    first, second = load(whole / "checkpoint.pt"), load(parts / "checkpoint.pt")
    assert {"step", "model", "averaged", "optimizer", "stream", "random"} <= set(first)
    assert first["step"] == 20
    assert first["stream"]["epoch"] > 0
    assert differences(first, second) == []
    assert differences(load(whole / "head.pt"), load(parts / "head.pt")) == []
    curves = [[(row["step"], row["loss"], row["lr"]) for row in read_track(run)] for run in (whole, parts)]
    assert [step for step, _, _ in curves[0]] == [5, 10, 15, 20]
    assert len({rate for _, _, rate in curves[0]}) == 4
    assert curves[0] == curves[1]


def load(file: Path) -> Any:
    return torch.load(file, weights_only=True)


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two checkpoints are not the same bit for bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    if isinstance(first, dict):
        missing = [f"{where}.{key}" for key in first.keys() ^ second.keys()]
        return missing + [
            d for key in first.keys() & second.keys() for d in differences(first[key], second[key], f"{where}.{key}")
        ]
    if isinstance(first, list | tuple):
        found = [
            d for n, pair in enumerate(zip(first, second, strict=False)) for d in differences(*pair, f"{where}[{n}]")
        ]
        return found + ([where] if len(first) != len(second) else [])
    return [] if first == second else [where]


def test_a_run_tells_what_made_it(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings, versions, the cache's fingerprint, every word that was printed, numbers, weights."""
    settings = {**SETTINGS, "steps": "2", "log_every": "1", "warmup": "0"}
    run = train.main(cache=cache, head="unet", run=tmp_path / "run", settings=settings)
    printed = capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == {
        "config.json", "checkpoint.pt", "head.pt", "log.txt", "metrics.jsonl",
    }  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["fingerprint"] == Cache(cache).spec.fingerprint
    assert config["recipe"]["train"]["log_every"] == 1
    assert config["versions"] == {**config["versions"], **code_version()}
    first, *log = (run / "log.txt").read_text().splitlines()
    assert first.startswith("--- 20")
    assert first.endswith(" ".join(code_version().values()))
    assert "\n".join(log) + "\n" == printed
    assert "2/2 steps" in printed
    assert [row["step"] for row in read_track(run)] == [1, 2]


def test_the_version_names_the_commit_of_a_checkout() -> None:
    root = Path(train.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    words = ["git", "-C", str(root), "rev-parse", "HEAD"]
    head = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    commit = code_version()["commit"].removesuffix("-dirty")
    known = subprocess.run([*words[:3], "rev-parse", commit], capture_output=True, text=True, check=True).stdout.strip()
    assert len(commit) == 12
    assert len(known) == len(head) == 40


def test_the_log_has_the_error_that_ended_it(cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(PipelineError, match="not finite"):
        train.main(cache=cache, head="unet", run=run, settings={**SETTINGS, "lr": "1e30", "warmup": "0"})
    lines = (run / "log.txt").read_text().splitlines()
    assert lines[-2].startswith("error: the loss is not finite at step 1: {'bce':")
    assert "images [1" in lines[-2]
    assert lines[-1].startswith("hint: lower the learning rate")
    with pytest.raises(ZeroDivisionError), logged(tmp_path / "log.txt", "x"):
        raise ZeroDivisionError("what nobody foresaw")
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_of_a_bar_the_log_has_a_line_now_and_then() -> None:
    """A terminal gets every character; the file whole lines, without the bar's colours and cursor."""
    terminal, file = io.StringIO(), io.StringIO()
    tee = Tee(terminal, file, every_seconds=1e9)
    for text in ("head unet\n", "\r 1/3 steps", "\r 2/3 steps", "\r\x1b[A 3/3 steps", "\n", "done", "\n"):
        tee.write(text)
    assert terminal.getvalue() == "head unet\n\r 1/3 steps\r 2/3 steps\r\x1b[A 3/3 steps\ndone\n"
    assert file.getvalue() == "head unet\n 3/3 steps\ndone\n"
    file = io.StringIO()
    tee = Tee(terminal, file, every_seconds=0)
    for text in ("\r 1/3 steps", "\r 2/3 steps", "\r 3/3 steps", "\n"):
        tee.write(text)
    assert file.getvalue() == " 1/3 steps\n 2/3 steps\n 3/3 steps\n"
    assert not tee.isatty()


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 3, "loss": 2.0}\n{"step": 2, "lo')
    track = Track(tmp_path, 2)
    track.log({"step": 2, "loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
