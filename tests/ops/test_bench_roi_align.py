"""The benchmark of RoIAlign runs and checks itself: on the CPU, and its GPU rows on kernels built for the CPU."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_on_cpu import launcher
from torch import Tensor

from pipeline.ops import roi_align, roi_align_cpu, roi_align_cuda, roi_align_reference
from scripts import bench_roi_align

SMALL = ["--input-hw", "64", "96", "--channels", "16", "--boxes", "3", "--rounds", "1", "--size", "4"]


def table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[list[str], str]:
    """First cells of the rows, and what was said on stderr."""
    monkeypatch.setattr(sys, "argv", ["bench_roi_align.py", *SMALL, *more])
    monkeypatch.setitem(bench_roi_align.CALLS, "cpu", 1)
    with pytest.raises(SystemExit) as caught:
        bench_roi_align.main()
    out, err = capsys.readouterr()
    assert caught.value.code == (1 if err else 0)
    return [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")][1:], err


def test_runs_on_the_cpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, errors = table(capsys, monkeypatch)
    assert errors == ""
    assert rows[0] == "upsample + add + torchvision"
    assert "ours on the CPU, two maps" in rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_row_of_a_gpu_is_right(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, scripted = launcher(tmp_path), []

    def unpool(grad: Tensor, boxes: Tensor, *rest: Any) -> list[Tensor]:
        deterministic = torch.are_deterministic_algorithms_enabled()
        scripted.append(deterministic)
        return roi_align_cuda.unpool(grad, boxes, *rest, deterministic=deterministic, launch=launch)

    # the operator's CPU side becomes the kernels
    monkeypatch.setattr(roi_align_cpu, "pool", lambda *arguments: roi_align_cuda.pool(*arguments, launch=launch))
    monkeypatch.setattr(roi_align_cpu, "unpool", unpool)
    monkeypatch.setattr(roi_align, "_no_kernel", lambda levels: "")
    monkeypatch.setattr(bench_roi_align, "_has_kernels", lambda device: True)
    rows, errors = table(capsys, monkeypatch, "--dtype", dtype)
    assert errors == ""
    assert [row for row in rows if row.startswith("ours")] == [
        "ours, C1 alone",
        "ours, two maps",
        "ours, two maps, deterministic",
        "ours, two maps, direct",
        "ours, two maps of uint8",
    ]
    assert set(scripted) == {False, True}


def test_a_row_tells_the_least_bytes_and_their_share_both_ways(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One map of 2 channels and 4 x 4 cells, of which the boxes cover 3; an output of 2 x 3 x 3, all of float32."""
    row = bench_roi_align.Row("a", lambda one: one, [torch.zeros(1, 2, 4, 4)], 3 * 2 * 4, torch.zeros(1, 2, 3, 3))
    assert bench_roi_align.least_bytes(row, backward=False) == 3 * 2 * 4 + 18 * 4
    assert bench_roi_align.least_bytes(row, backward=True) == 3 * 2 * 4 + 18 * 4 + 18 * 4 + 32 * 4
    monkeypatch.setattr(sys, "argv", ["bench_roi_align.py", *SMALL])
    monkeypatch.setitem(bench_roi_align.CALLS, "cpu", 1)
    with pytest.raises(SystemExit):
        bench_roi_align.main()
    lines = [line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names, *rows = [[cell.strip() for cell in line] for line in lines]
    assert names == list(bench_roi_align.COLUMNS)
    for cells in rows:
        assert 0 < float(cells[3]) < float(cells[7])
        assert cells[4].endswith("%")
        assert cells[8].endswith("%")


def test_a_wrong_row_ends_with_status_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = roi_align_reference.pool
    monkeypatch.setattr(roi_align_reference, "pool", lambda *arguments: pool(*arguments) + 0.1)
    _, errors = table(capsys, monkeypatch)
    assert "upsample + add + torchvision: differs from the reference by 1.0" in errors
