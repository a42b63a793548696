"""The sheet of best and worst images."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import Tiny, write_tiny
from typer.testing import CliRunner

from pipeline import cases, evaluate, extract
from pipeline.cli import app
from pipeline.errors import PipelineError, UsageError


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return write_tiny(tmp_path / "tiny")


def test_best_and_worst_side_by_side(tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "cache")
    evaluate.main(cache=cache, run=tmp_path / "run", reference="oracle")
    rows = json.loads((tmp_path / "run" / "quality.json").read_text())
    assert len(rows) == 8
    assert {row["mask_iou"] for row in rows if not row["objects"]} == {None}
    assert all(0 <= row["mask_iou"] <= 1 and row["matched"] <= row["objects"] for row in rows if row["objects"])
    out = cases.main(cache=cache, run=tmp_path / "run", out=tmp_path / "sheet.png", count=2)
    with Image.open(out) as sheet:
        assert sheet.width > 4 * 400
        assert 2 * 320 < sheet.height < 3 * 320


def test_a_run_that_was_not_evaluated(tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "cache")
    with pytest.raises(PipelineError, match="was not evaluated"):
        cases.main(cache=cache, run=tmp_path / "run", out=tmp_path / "sheet.png")


def test_a_sheet_that_cannot_be_drawn_is_refused_beforehand(tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "cache")
    cases.check_sheet(cache, tmp_path / "sheet.JPG")
    with pytest.raises(UsageError, match=r"unknown ending '\.xyz'"):
        cases.check_sheet(cache, tmp_path / "sheet.xyz")
    with pytest.raises(PipelineError, match="there is no directory"):
        cases.check_sheet(cache, tmp_path / "nowhere" / "sheet.png")
    words = ["evaluate", "--cache", str(cache), "--run", str(tmp_path / "run"), "--reference", "box", "--sheet"]
    assert CliRunner().invoke(app, [*words, str(tmp_path / "sheet.xyz")]).exit_code == 2
    assert not (tmp_path / "run").exists()
    tiny.images.rename(tmp_path / "gone")
    with pytest.raises(PipelineError, match=r"the pictures of .* are not in"):
        cases.check_sheet(cache, tmp_path / "sheet.png")
