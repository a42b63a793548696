"""The walk-through, with fewer steps: every part of it happens, and a second walk finds all of it done."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.heads.registry import FAMILIES

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_the_walk_through_goes_from_pictures_to_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setitem(FAMILIES, "convolutions", FAMILIES["baseline"])  # it registers its own; the test undoes that
    sys.modules.pop("walkthrough", None)
    import walkthrough

    seen = walkthrough.main(tmp_path, train_pictures=12, val_pictures=3, steps=30)
    assert len(seen["cache"]) == 12
    assert seen["cache"].views == ("orig", "hflip")
    assert seen["cache"].done("orig").all()
    assert seen["cache"].done("hflip").all()
    for run in seen["runs"]:
        assert (run / "head.pt").is_file()
    for metrics in seen["metrics"].values():
        assert metrics["bbox"]["AP"] > 60  # the detector knows its drawings
        assert metrics["mask_iou"] > 0.5  # that of the filled box; the baseline, untrained, has 0.35
    assert seen["metrics"]["unet"]["segm"]["AP"] != seen["metrics"]["convolutions"]["segm"]["AP"]
    picture = Image.open(tmp_path / "pictures" / "val" / "images" / "000001.png")
    drawn = Image.open(seen["overlay"])
    assert drawn.size == (3 * picture.width, 3 * picture.height)
    enlarged = np.asarray(picture.resize(drawn.size, Image.Resampling.BICUBIC), dtype=int)
    assert (np.abs(np.asarray(drawn) - enlarged).max(2) > 30).mean() > 0.01
    page = seen["report"].read_text()
    assert "unet" in page
    assert "convolutions" in page

    capsys.readouterr()
    again = walkthrough.main(tmp_path, train_pictures=12, val_pictures=3, steps=30)
    assert again["metrics"] == seen["metrics"]
    assert capsys.readouterr().err.count("is trained to its end") == 2
