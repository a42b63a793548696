"""Runs -> one HTML page that holds everything it shows: AP, where AP is lost, curves, cost, best and worst images."""

from collections.abc import Sequence
from pathlib import Path

from . import cases
from .errors import PipelineError
from .files import whole_file
from .page import html
from .page.charts import swatch
from .page.pictures import case_figures
from .page.record import Record, names_of, read_record
from .page.results import ap_section, class_section, lost_section, recall_section
from .page.training import cost_section, course_section, settings_section

ABOUT_CASES = {
    "mask_iou": "By the mean mask IoU in the box over an image's objects, zero for a missed one. "
    f"Masks with a score of at least {cases.MIN_SCORE} are drawn, all of them count",
    "PQ": "By the panoptic quality of the image, over the classes that are in it or were found in it",
    "mIoU": "By the mean IoU of the classes that are in the image",
}


REFERENCES = {
    "box": "a reference, no head: the detector's boxes filled",
    "oracle": "a reference, no head: the best 32 x 32 masks that the detector's boxes can hold, from the ground truth",
}


def main(*, runs: Sequence[Path], out: Path, cache: Path | None = None, count: int = 4) -> Path:
    """Write the page and return `out`.

    runs: run directories, trained or evaluated or both; what one of them lacks is said. cache: what they were evaluated
    on; with it the page tells the size of the cache and shows the `count` best and as many worst images of the first
    evaluated run, where the pictures are still in the folder that they were extracted from.
    """
    records = [read_record(run, name) for run, name in zip(runs, names_of(list(runs)), strict=True)]
    if not records:
        raise PipelineError("a report of no run", "python -m pipeline report RUN... --out report.html")
    title = records[0].name if len(records) == 1 else f"{len(records)} runs compared"
    parts = [
        html.tag("h1", html.text(title)),
        _legend(records),
        *_warnings(records),
        ap_section(records),
        lost_section(records),
        recall_section(records),
        class_section(records),
        _pictures(records, cache, count),
        course_section(records),
        cost_section(records, cache),
        settings_section(records),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as stream:
        stream.write(html.page(f"Report: {title}", *parts).encode())
    return out


def _legend(records: Sequence[Record]) -> str:
    rows: list[str] = []
    for place, record in enumerate(records):
        what = f": {record.run.recipe.about}" if record.run and record.run.recipe.about else ""
        if record.reference:
            what = f": {REFERENCES[record.reference]}"
        rows.append(html.tag("li", swatch(place), html.tag("b", html.text(record.name)), html.text(what)))
    return html.tag("ul", *rows, class_="runs")


def _warnings(records: Sequence[Record]) -> list[str]:
    """What keeps the runs from being compared."""
    missing = [record.name for record in records if record.metrics is None]
    known = [record.identity for record in records if record.identity is not None]
    where = [{key: one.get(key) for key in ("cache", "holdout", "images")} for one in known]
    features = {record.run.fingerprint for record in records if record.run}
    found: list[str] = []
    if missing:
        found.append(f"Not evaluated yet, so without AP: {', '.join(missing)}.")
    if mixed := [record.name for record in records if record.reference and record.run]:
        found.append(f"Figures of a reference in the directory of a head: {', '.join(mixed)}; evaluate it again.")
    if any(one != where[0] for one in where):
        found.append("These runs were not evaluated on the same images: do not compare their AP.")
    means = [record.name for record in records if record.identity and record.identity.get("views")]
    if means and len(means) < len(known):
        found.append(
            f"Masks that are means over several views (evaluate --views), which costs more: {', '.join(means)}."
        )
    if len(features) > 1:
        found.append("These heads were trained on different caches.")
    return [html.tag("p", html.text(words), class_="warning", role="note") for words in found]


def _pictures(records: Sequence[Record], cache: Path | None, count: int) -> str:
    record = next((record for record in records if record.metrics is not None), None)
    if record is None:
        return ""
    title = f"Best and worst images of {record.name}" if len(records) > 1 else "Best and worst images"
    if cache is None:
        return html.section(title, html.tag("p", "Give --cache DIR to see them."))
    try:
        shown = cases.find_cases(cache=cache, run=record.folder, count=count)
        about = ABOUT_CASES[shown[0].figure] + "; as many of each kind." if shown else ""
        return html.section(title, *case_figures(shown), about=about)
    except PipelineError as error:
        return html.section(title, html.tag("p", html.text(f"Not shown: {error.message}.")))
