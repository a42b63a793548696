"""The main job in one command: a table and pictures; a mistake is told before any work."""

import json
import sys
from pathlib import Path

import pytest

from scripts import demo


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["demo.py", *words])
    return demo.main()


def test_the_main_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "TRAIN_DRAWINGS", 6)
    monkeypatch.setattr(demo, "VAL_DRAWINGS", 3)
    out = tmp_path / "demo"
    assert run(monkeypatch, "--out", str(out), "steps=2", "warmup=0", "batch_size=2", "hidden=16") == 0
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    for row in ("boxes of the frozen detector", "trained head 'unet'", "parameter-free baseline", "the box, filled"):
        assert f"| {row}" in table.replace("*", "")
    metrics = json.loads((out / "unet" / "metrics.json").read_text())
    assert metrics["images"] == 3
    assert f"{metrics['segm']['AP']:.1f}" in table
    assert all((out / name).stat().st_size for name in ("sheet.png", "loss.png"))


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["steps=4"], "warmup 100 leaves nothing of 4 steps", 1),
        (["lrr=4"], "did you mean 'lr'?", 2),
        (["lr"], "'lr' is not KEY=VALUE", 2),
        (["--detector", "deimv2-femto"], "give all of these", 2),
        (["--val-images", "x"], "go together", 2),
    ],
)
def test_a_mistake_is_told_before_any_work(
    words: list[str], said: str, status: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(monkeypatch, "--out", str(tmp_path / "demo"), *words) == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
