"""Sections of the page on how the heads came to be: the course of training, size and speed, settings."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featcache.disk import human_bytes
from featcache.summary import info

from . import html
from .charts import Line, line_chart, smoothed
from .record import Record

COSTS = ("images_per_second", "data_wait", "memory_bytes", "step_seconds", "step_memory_bytes")
"""Of metrics.jsonl: told in the table of costs. Every other number of it is a curve."""
CURVE_NAMES = {
    "loss": "Loss, all terms",
    "class": "Loss: class",
    "l1": "Loss: boxes, L1",
    "giou": "Loss: boxes, GIoU",
    "bce": "Loss: cross-entropy",
    "dice": "Loss: dice",
    "scoring": "Loss: mask scoring",
    "selected": "Loss: first selection",
    "interaction": "Loss: token interaction",
    "denoising": "Loss: denoising",
    "detection": "Loss: detection",
    "lr": "Learning rate",
    "val/AP": "Mask AP on the way",
    "val/AP50": "Mask AP50 on the way",
    "val/AP75": "Mask AP75 on the way",
}


def course_section(records: Sequence[Record]) -> str:
    """Every number of metrics.jsonl over the steps."""
    names = [name for record in records for row in record.log for name, value in row.items() if _is_number(value)]
    figures: list[str] = []
    shown = list(CURVE_NAMES)  # losses beside each other, whichever run has them
    for name in sorted(dict.fromkeys(names), key=lambda name: shown.index(name) if name in shown else len(shown)):
        if name == "step" or name in COSTS:
            continue
        lines: list[Line] = []
        for place, record in enumerate(records):
            rows = [row for row in record.log if _is_number(row.get(name)) and _is_number(row.get("step"))]
            if rows:
                line = Line(record.name, [r["step"] for r in rows], [r[name] for r in rows], place)
                lines += [line] if name == "lr" or name.startswith("val/") else smoothed(line)
        figures.append(line_chart(CURVE_NAMES.get(name, name), lines, x_name="step"))
    if not figures:
        return ""
    about = "Faint: as logged. Strong: mean of the last 20 lines of the log."
    return html.section("Training", html.tag("div", *figures, class_="grid"), about=about)


def cost_section(records: Sequence[Record], cache: Path | None) -> str:
    """What the heads and the cache take."""
    head = ["", *(record.name for record in records)]
    rows = [
        ["parameters", *("–" if r.parameters is None else f"{r.parameters:,}" for r in records)],
        ["weights on disk", *("–" if r.head_bytes is None else human_bytes(r.head_bytes) for r in records)],
        ["steps", *(_last(record, "step") for record in records)],
        ["time of a step, the batch there", *(_median(record, "step_seconds", 1000, " ms") for record in records)],
        ["training, images per second", *(_median(record, "images_per_second", 1, "") for record in records)],
        ["waiting for data", *(_median(record, "data_wait", 100, " %") for record in records)],
        ["memory of the head in a step", *(_most(record, "step_memory_bytes") for record in records)],
        ["memory of the process", *(_most(record, "memory_bytes") for record in records)],
    ]
    rows = [row for row in rows if any(cell != "–" for cell in row[1:])]
    parts = [html.table("Heads", head, rows)] if rows else []
    if cache is not None:
        parts.append(_cache_table(cache))
    about = "Medians over the log, memory at its peak. Speed depends on the machine and on what else ran there."
    return html.section("Size and speed", *parts, about=about) if parts else ""


def settings_section(records: Sequence[Record]) -> str:
    """Where the runs differ, and everything of each."""
    trained = [record for record in records if record.run is not None]
    if not trained:
        return ""
    flat = [_flat({"head": record.run.recipe.family, **asdict(record.run.recipe), "versions": record.run.versions})
            for record in trained if record.run]  # fmt: skip
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in ("name", "about")]
    differing = [key for key in keys if len({one.get(key, "–") for one in flat}) > 1]
    parts: list[str] = []
    if differing:
        rows = [[key, *(one.get(key, "–") for one in flat)] for key in differing]
        parts.append(html.table("Where they differ", ["setting", *(record.name for record in trained)], rows))
    for record in trained:
        assert record.run is not None
        content = json.dumps(asdict(record.run), indent=2)
        summary = html.tag("summary", html.text(f"Everything about {record.name}"))
        parts.append(html.tag("details", summary, html.tag("pre", html.text(content))))
    return html.section("Settings", *parts)


def _cache_table(cache: Path) -> str:
    told = info(cache)
    ratio = told["ratio"]
    rows = [
        ["features of", str(told["source"].get("name", "–"))],
        ["images", f"{told['images']:,}"],
        ["views done", ", ".join(f"{view} {done:,}" for view, done in told["done"].items())],
        ["codec", told["codec"]],
        ["size", "–" if told["bytes"] is None else human_bytes(told["bytes"])],
        ["per image and view", "–" if told["bytes_per_image"] is None else human_bytes(round(told["bytes_per_image"]))],
        ["of raw fp16", "–" if ratio is None else f"{ratio:.2f}"],
        ["files", "–" if told["files"] is None else f"{told['files']:,}"],
        ["fingerprint", told["fingerprint"]],
    ]
    return html.table(f"Cache {cache.name}", ["", "value"], rows)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `part.field`."""
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = str(value)
    return found


def _values(record: Record, key: str) -> list[float]:
    return [row[key] for row in record.log if _is_number(row.get(key))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _last(record: Record, key: str) -> str:
    values = _values(record, key)
    return f"{values[-1]:,}" if values else "–"


def _median(record: Record, key: str, factor: float, unit: str) -> str:
    values = _values(record, key)
    return f"{statistics.median(values) * factor:.1f}{unit}" if values else "–"


def _most(record: Record, key: str) -> str:
    values = _values(record, key)
    return human_bytes(int(max(values))) if values else "–"
