import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def test_it_draws_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    runs = [tmp_path / name for name in ("a", "b")]
    for run in runs:
        (run / "metrics").mkdir(parents=True)
        rows = [{"layer": n, "segm": {"AP": 10.0 * n}, "own_bbox": {"AP": 9.0 * n}} for n in range(3)]
        (run / "metrics" / "layers.json").write_text(json.dumps(rows))
    monkeypatch.setattr(sys, "argv", ["layer_curve.py", str(tmp_path / "out.png"), *map(str, runs)])
    runpy.run_path(str(ROOT / "scripts" / "layer_curve.py"), run_name="__main__")
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 800
