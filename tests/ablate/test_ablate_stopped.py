"""Whatever happens to one head, the others go on; whatever stops them all, the same command goes on with them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ablate_toy import TABLE, losses, read, run, same_weights, write

from pipeline.errors import PipelineError
from pipeline.heads import base as base_file
from pipeline.training.checkpoint import load_head
from pipeline.training.trainer import Trainer


class PowerCut(BaseException):
    """Nothing catches this one."""


@pytest.mark.parametrize(
    ("function", "calls"), [("step", 2), ("step", 17), ("_save", 2), ("_save", 4), ("write_head", 2)]
)
def test_killed_anywhere_the_same_command_goes_on(
    toml: Path, cache: Path, tmp_path: Path, function: str, calls: int
) -> None:
    """Also where some heads have written their checkpoint and others have not."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    outcome = run(toml, cache, whole)
    left = calls

    def dying(original: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerCut
            return original(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, function, dying(getattr(Trainer, function)))
        with pytest.raises(PowerCut):
            run(toml, cache, cut)
    run(toml, cache, cut)
    for member in outcome.members:
        assert same_weights(member.folder, cut / member.folder.name)
        assert losses(member.folder) == losses(cut / member.folder.name)
    assert _without_costs(whole / "table.csv") == _without_costs(cut / "table.csv")


def _without_costs(table: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if not key.startswith("step_")} for row in read(table)]


def test_a_killed_process_goes_on(toml: Path, cache: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "pipeline", "ablate", str(toml), "--cache", str(cache), "--out", str(tmp_path / "cut"),
        "--steps", "30", "--batch-size", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoint = tmp_path / "cut" / "no-image-encoder" / "checkpoint.pt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "cut" / "table.md").exists()
    whole = run(toml, cache, tmp_path / "whole", steps="30")
    run(toml, cache, tmp_path / "cut", steps="30")
    assert all(same_weights(member.folder, tmp_path / "cut" / member.folder.name) for member in whole.members)


def test_ctrl_c_saves_every_head_at_the_same_step(toml: Path, cache: Path, tmp_path: Path) -> None:
    step, calls = Trainer.step, iter(range(100))

    def interrupting(*args: Any) -> Any:
        if next(calls) == 7:  # amid the third step of the three heads
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", interrupting)
        with pytest.raises(PipelineError, match=r"stopped by Ctrl-C after step 3 of 7"):
            run(toml, cache, tmp_path / "cut")
    saved = [torch.load(file, weights_only=True)["step"] for file in (tmp_path / "cut").glob("*/checkpoint.pt")]
    assert saved == [3, 3, 3]
    run(toml, cache, tmp_path / "cut")
    whole = run(toml, cache, tmp_path / "whole")
    assert all(same_weights(member.folder, tmp_path / "cut" / member.folder.name) for member in whole.members)


def test_a_head_that_diverges_drops_out_and_the_others_go_on(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = '[[rows]]\nname = "too fast"\nsettings = { lr = 1e30 }\n'
    outcome = run(write(tmp_path, TABLE.replace("[[rows]]", bad + "[[rows]]", 1)), cache, tmp_path / "out")
    (folder,) = outcome.failures
    assert folder == tmp_path / "out" / "too-fast"
    words = capsys.readouterr().err
    assert "head 'too fast' (seed 0) drops out: the loss is not finite at step" in words
    assert "'bce'" in words
    good = run(write(tmp_path, TABLE), cache, tmp_path / "good")
    for member in good.members:
        assert same_weights(member.folder, tmp_path / "out" / member.folder.name)
    rows = read(tmp_path / "out" / "table.csv")
    assert [bool(row["failed"]) for row in rows] == [True, False, False, False]
    assert rows[0]["AP"] == ""
    assert "| too fast | failed |" in outcome.table
    with pytest.raises(PipelineError, match="1 of 4 did not come to the end: head 'too fast'"):
        outcome.check()
    with pytest.raises(PipelineError, match="not trained to its end"):
        load_head(folder)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
        ZeroDivisionError("a bug"),
    ],
)
def test_a_head_without_memory_drops_out_and_is_tried_again(
    toml: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """The first attempt fails amid the pass, the second command takes up this head alone, at its own step."""
    build = base_file.build_targets

    def failing(batch: Any, categories: Any, config: Any, generator: Any) -> Any:
        if config.ema == 0.9 and next(calls) == 6:
            raise error
        return build(batch, categories, config, generator)

    calls = iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_file, "build_targets", failing)
        outcome = run(toml, cache, tmp_path / "out")
    assert list(outcome.failures) == [tmp_path / "out" / "paper-s-encoder"]
    words = capsys.readouterr().err
    assert "head 'paper's encoder' (seed 0) drops out" in words
    assert ("a bug" if isinstance(error, ZeroDivisionError) else "out of memory at step 6, batch of 2 images") in words
    again = run(toml, cache, tmp_path / "out")
    assert not again.failures
    whole = run(toml, cache, tmp_path / "whole")
    assert all(same_weights(member.folder, tmp_path / "out" / member.folder.name) for member in whole.members)
