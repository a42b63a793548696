"""The benchmark of deformable attention runs and checks itself: on the CPU, and its GPU row on kernels built for it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_on_cpu import launcher
from torch import Tensor

from pipeline.ops import ms_deform_attn_cpu, ms_deform_attn_cuda
from scripts import bench_ms_deform_attn
from scripts.bench_ms_deform_attn import Call


def table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> tuple[dict[str, float], str]:
    """Error of each row, and what was said on stderr."""
    small = {"small": Call("two small levels", 2, ((6, 7), (3, 4)), 64)}
    monkeypatch.setattr(bench_ms_deform_attn, "CALLS_MADE", small)
    monkeypatch.setattr(sys, "argv", ["bench_ms_deform_attn.py", "--rounds", "1", "--dtype", dtype])
    with pytest.raises(SystemExit) as caught:
        bench_ms_deform_attn.main()
    out, err = capsys.readouterr()
    assert caught.value.code == (1 if err else 0)
    lines = [line.split("|")[1:3] for line in out.splitlines() if line.startswith("| ")][1:]
    return {name.strip(): float(error) for name, error in lines}, err


def test_runs_on_the_cpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    errors, said = table(capsys, monkeypatch, "float32")
    assert said == ""
    assert next(iter(errors)) == "grid_sample"
    assert errors["ours"] < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_row_of_a_gpu_is_right(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = launcher(tmp_path)

    def backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return ms_deform_attn_cuda.attend_backward(*arguments, deterministic=False, launch=launch)

    # the operator's CPU side becomes the kernels
    monkeypatch.setattr(
        ms_deform_attn_cpu, "attend", lambda *arguments: ms_deform_attn_cuda.attend(*arguments, launch=launch)
    )
    monkeypatch.setattr(ms_deform_attn_cpu, "attend_backward", backward)
    errors, said = table(capsys, monkeypatch, dtype)
    assert said == ""
    assert errors["ours"] < (1e-5 if dtype == "float32" else 1e-2)


def test_a_wrong_row_ends_the_run_with_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ms_deform_attn_cpu.attend
    monkeypatch.setattr(ms_deform_attn_cpu, "attend", lambda *arguments: torch.roll(right(*arguments), 1))
    errors, said = table(capsys, monkeypatch, "float32")
    assert errors["ours"] > 0.1
    assert "ours: differs from grid_sample" in said
