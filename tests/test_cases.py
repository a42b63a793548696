"""The sheet of best and worst images."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import Tiny, write_tiny

from pipeline import cases, evaluate, extract
from pipeline.errors import PipelineError


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
