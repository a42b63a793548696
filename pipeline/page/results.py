"""Sections of the page on how good the masks are: AP, where it is lost, precision over recall, each class."""

from collections.abc import Sequence

from ..masks.coco_eval import FIGURES, PER_CLASS
from . import html
from .charts import Line, bar_chart, colour, line_chart
from .html import number
from .record import Record

MEANING = {
    "AP": "mean over IoU 0.50–0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, below 32²",
    "APm": "medium",
    "APl": "large, above 96²",
    "AR1": "recall, 1 per image",
    "AR10": "recall, 10",
    "AR100": "recall, 100",
    "ARs": "recall, small",
    "ARm": "recall, medium",
    "ARl": "recall, large",
}
KINDS = {"missed": "missed boxes", "wrong_class": "wrong classes", "false": "false boxes", "loose_mask": "loose masks"}
BESIDE = {"own_bbox": "own boxes", "boundary": "boundary"}
"""Figures that some runs have beside those of masks and of the detector's boxes."""
SEGMENTS = {"panoptic": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"), "semantic": ("mIoU", "fwIoU", "pACC")}
"""Figures of heads for segments, in percent."""
CURVES = {"mean": "mean over IoU 0.50–0.95", "0.50": "IoU 0.50", "0.75": "IoU 0.75"}
EXTREMES = 10
"""Classes in the charts of the best and of the worst."""


def ap_section(records: Sequence[Record]) -> str:
    """The twelve figures of each run, the detector's boxes beside them."""
    judged = _judged(records)
    if not judged:
        return html.section("AP", html.tag("p", "No run is evaluated yet."))
    boxes: list[Record] = []
    for record in judged:
        if all(_figures(other, "bbox") != _figures(record, "bbox") for other in boxes):
            boxes.append(record)
    several = len(boxes) > 1
    head = ["COCO figure", *(record.name for record in judged)]
    head += [f"detector's boxes ({record.name})" if several else "detector's boxes" for record in boxes]
    rows: list[list[str]] = []
    for figure in FIGURES:
        segm = [number(_figures(record, "segm").get(figure)) for record in judged]
        bbox = [number(_figures(record, "bbox").get(figure)) for record in boxes]
        rows.append([f"{figure} ({MEANING[figure]})", *segm, *bbox])
    extra = [
        *(
            [f"{words} {figure}", *(number(_figures(record, kind).get(figure)) for record in judged)]
            for kind, words in BESIDE.items()
            for figure in PER_CLASS
            if any(_figures(record, kind) for record in judged)
        ),
        *(
            [f"{kind} {figure}", *(number(_figures(record, kind).get(figure)) for record in judged)]
            for kind, figures in SEGMENTS.items()
            for figure in figures
            if any(_figures(record, kind) for record in judged)
        ),
        ["IoU in the box", *(number((record.metrics or {}).get("mask_iou"), 3) for record in judged)],
        ["matched detections", *(_count(record, "matched") for record in judged)],
        ["images evaluated", *(_count(record, "images") for record in judged)],
    ]
    return html.section(
        "AP",
        html.table("Masks, and boxes of the frozen detector, in percent", head, rows),
        html.table("Beside the AP of masks", ["", *(record.name for record in judged)], extra),
        about="The twelve figures of pycocotools. Masks, and the boxes that a head tells itself, are scored by "
        "their own confidence, the detector's boxes by its. Boundary AP asks for the outline too.",
    )


def lost_section(records: Sequence[Record]) -> str:
    """What each kind of error costs."""
    told = [(place, record) for place, record in enumerate(records) if record.lost and record.lost["AP"] is not None]
    if not told:
        return ""
    bars = [(place, [_gain(record, kind) for kind in KINDS]) for place, record in told]
    names = list(KINDS.values())
    rows = [["as it is", *(number((record.lost or {}).get("AP")) for _, record in told)]]
    rows += [
        [f"without {words}", *(number((r.lost or {}).get(kind)) for _, r in told)] for kind, words in KINDS.items()
    ]
    return html.section(
        "Where AP is lost",
        html.tag(
            "div",
            bar_chart("AP gained if made perfect, points", names, bars),
            html.tag("div", html.table("AP left, percent", ["", *(record.name for _, record in told)], rows)),
            class_="grid",
        ),
        about="One kind of error made perfect at a time, all else as it is. The first three are the frozen detector's, "
        "but for heads that tell their own boxes; loose masks are what a better mask head could gain. Gains do not add "
        "up: one error hides another.",
    )


def recall_section(records: Sequence[Record]) -> str:
    """Precision over recall at three overlaps."""
    judged = [(place, record) for place, record in enumerate(records) if record.curves]
    figures: list[str] = []
    for curve, words in CURVES.items():
        lines: list[Line] = []
        for place, record in judged:
            curves = record.curves or {}
            if curves["segm"][curve]:
                lines.append(Line(record.name, curves["recall"], curves["segm"][curve], place))
            if curves["bbox"][curve] and place == judged[0][0]:
                lines.append(Line("detector's boxes", curves["recall"], curves["bbox"][curve], -1, dashed=True))
        figures.append(line_chart(f"Precision, {words}", lines, x_name="recall", y_range=(0, 100)))
    if not any(figures):
        return ""
    about = "Mean over the classes that have objects, in percent; the mean height of a line is its AP. "
    about += "Dashed grey: boxes of the detector."
    return html.section("Precision over recall", html.tag("div", *figures, class_="grid"), about=about)


def class_section(records: Sequence[Record]) -> str:
    """The classes with the highest and the lowest AP, and all of them in a table."""
    judged = [(place, record) for place, record in enumerate(records) if record.classes]
    if not judged:
        return ""
    first = judged[0][1]
    classes = [row for row in first.classes if row["segm"]["AP"] is not None]
    classes.sort(key=lambda row: -row["segm"]["AP"])
    by_run = [(place, {row["category_id"]: row["segm"]["AP"] for row in record.classes}) for place, record in judged]
    count = min(EXTREMES, -(-len(classes) // 2))
    charts: list[str] = []
    for kind, chosen in (("best", classes[:count]), ("worst", classes[len(classes) - count :][::-1])):
        rows = [_class_row(row, by_run) for row in chosen]
        charts.append(_bar_table(f"The {len(rows)} {kind} classes of {first.name}", rows))
    head = ["class", "objects", *(f"masks {r.name}" if len(judged) > 1 else "masks" for _, r in judged), "boxes"]
    table = [
        [row["name"], str(row["objects"]), *(number(known.get(row["category_id"])) for _, known in by_run),
         number(row["bbox"]["AP"])]
        for row in classes
    ]  # fmt: skip
    everything = html.tag(
        "details",
        html.tag("summary", f"All {len(classes)} classes with objects"),
        html.table("AP of each class, percent", head, table),
    )
    about = "AP of the masks, in percent; classes with few objects vary much by chance."
    return html.section("Classes", html.tag("div", *charts, class_="grid"), everything, about=about)


def _class_row(row: dict[str, object], by_run: Sequence[tuple[int, dict[int, float | None]]]) -> tuple[str, str]:
    """(name, bars) of one class, a bar for each run."""
    bars: list[str] = []
    for place, known in by_run:
        value = known.get(int(str(row["category_id"])))
        style = f"width:{max(value or 0, 0.5) * 0.62:.1f}%;background:{colour(place)}"
        bars.append(html.tag("div", html.tag("span", class_="bar", style=style), number(value)))
    return f"{row['name']} ({row['objects']})", "".join(bars)


def _bar_table(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    body = [html.tag("tr", html.tag("th", html.text(name), scope="row"), html.tag("td", bars)) for name, bars in rows]
    columns = html.tag(
        "tr", html.tag("th", "class (objects)", scope="col"), html.tag("th", "mask AP", scope="col", class_="left")
    )
    whole = html.tag(
        "table", html.tag("caption", html.text(caption)), html.tag("thead", columns), html.tag("tbody", *body)
    )
    return html.tag("div", whole, class_="bars")


def _judged(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.metrics is not None]


def _figures(record: Record, kind: str) -> dict[str, float | None]:
    return (record.metrics or {}).get(kind, {})


def _count(record: Record, key: str) -> str:
    return str((record.metrics or {}).get(key, "–"))


def _gain(record: Record, kind: str) -> float | None:
    left = record.lost or {}
    after, now = left.get(kind), left.get("AP")
    return None if after is None or now is None else after - now
