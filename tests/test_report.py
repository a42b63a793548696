"""The page of a report: complete, by itself, and the same numbers as in the files."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from discs import write_discs
from tiny import Tiny, write_tiny

from pipeline import evaluate, extract, report, train
from pipeline.errors import PipelineError
from pipeline.page.charts import Line, bar_chart, label, line_chart, smoothed, ticks
from pipeline.page.html import table, tag
from pipeline.page.record import names_of
from pipeline.page.training import CURVE_NAMES
from pipeline.training.track import TERMS

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Fails where tags do not balance; keeps what tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path, list[Path]]:
    """A cache of pictures, a head that was trained and evaluated on it, and a reference."""
    folder = tmp_path_factory.mktemp("report")
    tiny = write_tiny(folder / "data")
    cache = extract.main(**tiny.arguments, cache=folder / "cache")
    settings = {"steps": "6", "batch_size": "2", "roi": "8", "warmup": "0", "log_every": "2"}
    run = train.main(cache=cache, head="unet", run=folder / "a & <b>", settings=settings)
    evaluate.main(cache=cache, run=run)
    evaluate.main(cache=cache, run=folder / "oracle", reference="oracle")
    return tiny, cache, [run, folder / "oracle"]


def test_the_page_is_whole_and_needs_nothing_else(runs: tuple[Tiny, Path, list[Path]], tmp_path: Path) -> None:
    _, cache, folders = runs
    out = report.main(runs=folders, out=tmp_path / "new" / "report.html", cache=cache, count=2)
    source = out.read_text()
    page = Page(source)
    images = page.all("img")
    assert len(images) == 2 * 2 * 2  # ground truth and masks
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") and image["alt"] for image in images)
    assert not re.search(r"https?:|url\(|<script|<link|<iframe|@import", source)
    assert all(svg.get("aria-label") for svg in page.all("svg") if svg.get("aria-hidden") != "true")
    assert all(th.get("scope") in ("row", "col") for th in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 4
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    for title in (
        "AP",
        "Where AP is lost",
        "Precision over recall",
        "Classes",
        "Training",
        "Size and speed",
        "Settings",
    ):
        assert f" {title} " in page.text
    assert "a & <b>" in page.text  # escaped, and read back


def test_its_numbers_are_those_of_the_files(runs: tuple[Tiny, Path, list[Path]], tmp_path: Path) -> None:
    _, cache, folders = runs
    text = Page(report.main(runs=folders, out=tmp_path / "r.html", cache=cache).read_text()).text
    head, oracle = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    for figure in ("AP", "AP50", "AR100"):
        cells = [f"{one[figure]:.1f}" for one in (head["segm"], oracle["segm"], head["bbox"])]
        assert re.search(rf"{figure} \([^)]*\) {' '.join(map(re.escape, cells))}", text), figure
    if "boundary" in head:
        cells = [f"{one['boundary']['AP75']:.1f}" for one in (head, oracle)]
        assert f"boundary AP75 {' '.join(cells)}" in text
    assert "own boxes AP" not in text
    lost = json.loads((folders[1] / "metrics" / "lost_ap.json").read_text())
    assert lost["AP"] is not None
    for kind in ("wrong_class", "false", "loose_mask"):
        assert f"{lost[kind] - lost['AP']:+.1f}" in text
    head_weights = torch.load(folders[0] / "head.pt", weights_only=True)
    count = sum(value.numel() for value in head_weights.values())
    assert f"parameters {count:,} –" in text
    assert json.loads((folders[0] / "config.json").read_text())["fingerprint"] in text


def test_a_reference_is_called_one(runs: tuple[Tiny, Path, list[Path]], tmp_path: Path) -> None:
    _, _, (run, oracle) = runs
    text = Page(report.main(runs=[run, oracle], out=tmp_path / "r.html").read_text()).text
    assert "oracle : a reference, no head: the best 32 x 32 masks" in text
    assert "evaluate it again" not in text
    mixed = shutil.copytree(run, tmp_path / "mixed")
    shutil.copytree(oracle, mixed, dirs_exist_ok=True)
    text = Page(report.main(runs=[mixed], out=tmp_path / "m.html").read_text()).text
    assert "Figures of a reference in the directory of a head: mixed" in text


def test_evaluations_on_the_way_are_curves(runs: tuple[Tiny, Path, list[Path]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[2][0], folder)
    values = [{"step": step, "val": {"AP": 10.0 + step, "AP50": 20.0, "APs": None}, "best": True} for step in (2, 4, 6)]
    with (folder / "metrics.jsonl").open("a") as log:
        log.writelines(json.dumps(value) + "\n" for value in values)
        log.write('{"step": 8, "val"')  # killed while it wrote
    text = Page(report.main(runs=[folder], out=tmp_path / "r.html").read_text()).text
    assert "Mask AP on the way" in text
    assert "Mask AP50 on the way" in text
    assert "AP75 on the way" not in text
    assert " best " not in text.partition(" Training ")[2].partition(" Size ")[0]


def test_every_term_of_a_loss_has_a_name() -> None:
    assert set(TERMS) <= set(CURVE_NAMES)


def test_what_is_not_there_is_told(runs: tuple[Tiny, Path, list[Path]], tmp_path: Path) -> None:
    """A run that is not evaluated, another cache, pictures that have gone."""
    tiny, cache, folders = runs
    raw = train.main(cache=cache, head="baseline", run=tmp_path / "raw")
    alone = Page(report.main(runs=[raw], out=tmp_path / "raw.html").read_text()).text
    assert "Not evaluated yet, so without AP: raw." in alone
    other = write_discs(tmp_path / "discs")
    evaluate.main(cache=other, run=tmp_path / "box", reference="box")
    page = Page(report.main(runs=[folders[0], tmp_path / "box"], out=tmp_path / "two.html").read_text()).text
    assert "not evaluated on the same images" in page
    assert "Give --cache DIR" in page
    moved = tiny.images.rename(tmp_path / "gone")
    try:
        gone = Page(report.main(runs=folders, out=tmp_path / "gone.html", cache=cache).read_text())
    finally:
        moved.rename(tiny.images)
    assert "Not shown: " in gone.text
    assert gone.all("img") == []
    with pytest.raises(PipelineError, match="is no run"):
        report.main(runs=[tmp_path / "nothing"], out=tmp_path / "x.html")


def test_masks_of_several_views_are_told_from_those_of_one(runs: tuple[Tiny, Path, list[Path]], tmp_path: Path) -> None:
    _, _, (run, _) = runs
    mean = Path(shutil.copytree(run, tmp_path / "mean"))
    evaluated = json.loads((mean / "evaluated.json").read_text())
    evaluated["identity"]["views"] = ["hflip"]
    (mean / "evaluated.json").write_text(json.dumps(evaluated))
    words = "Masks that are means over several views (evaluate --views), which costs more: mean."
    assert words in Page(report.main(runs=[run, mean], out=tmp_path / "two.html").read_text()).text
    assert words not in Page(report.main(runs=[mean], out=tmp_path / "one.html").read_text()).text


def test_runs_are_named_by_what_tells_them_apart() -> None:
    assert names_of([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert names_of([Path("/x/one/a"), Path("/x/two/a")]) == ["one/a", "two/a"]
    with pytest.raises(PipelineError, match="twice"):
        names_of([Path("/x/a"), Path("/x/a")])


def test_charts_stay_inside_and_follow_the_numbers() -> None:
    chart = line_chart("Loss", [Line("run", range(1000), [1000 - n for n in range(1000)])], x_name="step")
    (points,) = re.findall(r'points="([^"]+)"', chart)
    pairs = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert 100 < len(pairs) <= 240
    assert all(0 <= x <= 360 and 0 <= y <= 230 for x, y in pairs)
    assert pairs == sorted(pairs)
    assert [y for _, y in pairs] == sorted(y for _, y in pairs)  # down in numbers is down on the page
    assert line_chart("none", [Line("run", [1], [float("nan")])], x_name="step") == ""
    bars = bar_chart("Gain", ["a", "b"], [(0, [10.0, 20.0]), (1, [None, 5.0])])
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', bars)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    assert len(widths) == 3


def test_a_noisy_line_has_its_running_mean() -> None:
    faint, strong = smoothed(Line("run", range(100), [n % 2 for n in range(100)]), 20)
    assert faint.faint
    assert not strong.faint
    assert strong.y[0] == 0
    assert set(strong.y[19:]) == {0.5}
    assert len(smoothed(Line("run", [0, 1], [0, 1]))) == 1


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0, 2400, 4) == [0, 500, 1000, 1500, 2000]
    assert ticks(0, 0.00105) == [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]
    assert (label(0.0002), label(20000), label(0.25)) == ("2e-4", "20k", "0.25")


def test_everything_is_escaped() -> None:
    assert tag("p", aria_label='a"b<') == '<p aria-label="a&quot;b&lt;"></p>'
    assert "<i>" not in table("<i>", ["<i>"], [["<i>", "<i>"]])
