"""What native detectors cost a cache: by hand for one, and the table of docs/detectors.md for all."""

import re
import sys
from pathlib import Path

import pytest

from pipeline.detectors.listing import list_detectors

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `([\w-]+)` \| \d+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    sys.modules.pop("detector_costs", None)


def test_half_precision_bytes_by_hand() -> None:
    from detector_costs import raw_megabytes

    raw = raw_megabytes("hdetr-r50", ("c1", "e8", "e64"))
    assert raw == {"c1": 2 * 256 * 200 * 304 / 1e6, "e8": 2 * 256 * 100 * 152 / 1e6, "e64": 2 * 256 * 13 * 19 / 1e6}


def test_the_table_of_the_page_is_that_of_the_script() -> None:
    from detector_costs import C1_RATIO, COCO_TRAIN, ENCODER_RATIO, raw_megabytes

    cards = {card.name: card for card in list_detectors() if card.kind in ("hdetr", "dino") and not card.embedded}
    rows = {name: tuple(map(float, cells)) for name, *cells in ROW.findall((ROOT / "docs/detectors.md").read_text())}
    assert rows.keys() == cards.keys()
    for name, (raw, kept, terabytes) in rows.items():
        by_level = raw_megabytes(name, cards[name].levels)
        whole = sum(by_level.values())
        projected = C1_RATIO * by_level["c1"] + ENCODER_RATIO * (whole - by_level["c1"])
        assert (raw, kept) == pytest.approx((whole, projected), abs=0.051)
        assert terabytes == pytest.approx(projected * COCO_TRAIN / 1e6, abs=0.0051)
