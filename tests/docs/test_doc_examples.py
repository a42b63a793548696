"""The worked examples of docs/ run as they stand: their files are written, their Python is executed, in order."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from discs import write_discs
from tiny import write_coco, write_onnx

from featcache.checks import verify
from pipeline.detectors.registry import KINDS
from pipeline.heads.registry import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\S+\.(?:toml|py))\n")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(language, code) of every fenced block."""
    yield from BLOCK.findall((DOCS / page).read_text())


def run(page: str) -> dict[str, Any]:
    """Write the blocks that open with a file name, execute the other Python; returns what that has defined."""
    names: dict[str, Any] = {"__name__": "example"}
    for number, (language, code) in enumerate(blocks(page), start=1):
        file = FILE.match(code)
        if file is not None:
            Path(file[1]).write_text(code)
        elif language == "python":
            exec(compile(code, f"{page}, block {number}", "exec", dont_inherit=True), names)
    return names


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_head_of_the_page_trains_and_is_evaluated(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "dot", FAMILIES["baseline"])  # the page names its own; the test undoes that
    write_discs(empty / "caches" / "train")
    write_discs(empty / "caches" / "val", images=3, seed=1)
    names = run("adding_a_head.md")
    assert FAMILIES["dot"][1] is names["Dot"]
    assert names["recipe"].head.hidden == 48
    assert (empty / "runs" / "dot" / "head.pt").is_file()
    assert np.isfinite(names["metrics"]["segm"]["AP"])


def test_features_of_ones_own(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("own_features.md")
    assert names["cache"].done("hflip").all()
    assert names["error"] < 0.01
    assert names["rows"].shape == (64, 8, 40)
    assert names["loss"] < 0.3
    assert "source.weights_sha256" in capsys.readouterr().out
    report = verify(empty / "caches" / "mine", deep=True)
    assert report.good
    assert report.checked == 48


def test_the_detectors_of_the_page_fill_caches(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KINDS, "toy", KINDS["onnx"])
    write_coco(empty)
    write_onnx(empty / "detr.onnx")
    sys.modules.pop("toy_detector", None)
    names = run("adding_a_detector.md")
    printed = capsys.readouterr().out
    assert "/decoder/queries" in printed
    assert "c1 (2, 8, 16, 16) stride 4" in printed
    assert np.isfinite(names["metrics"]["bbox"]["AP"])
    assert names["toy"].identity["weights_sha256"]
