"""A table of runs for the README: `python scripts/table.py runs/unet runs/baseline` reads their metrics.json."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.masks.coco_eval import FIGURES

SHOWN = FIGURES[:6]  # the precisions; the rest are recalls


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Name -> content of metrics.json, as a Markdown table; the frozen detector's box AP is the first row."""
    first = next(iter(rows.values()))
    lines = [
        "| masks | " + " | ".join(SHOWN) + " | IoU in the box |",
        "|---|" + "---|" * (len(SHOWN) + 1),
        "| *boxes of the frozen detector (bbox)* | " + " | ".join(_figure(first["bbox"][f]) for f in SHOWN) + " | |",
    ]
    for name, metrics in rows.items():
        if own := metrics.get("own_bbox"):
            lines.append(f"| *boxes of {name}* | " + " | ".join(_figure(own[f]) for f in SHOWN) + " | |")
        iou = "" if metrics["mask_iou"] is None else f"{metrics['mask_iou']:.3f}"
        lines.append(f"| {name} | " + " | ".join(_figure(metrics["segm"][f]) for f in SHOWN) + f" | {iou} |")
        if boundary := metrics.get("boundary"):
            lines.append(f"| {name}, boundary AP | " + " | ".join(_figure(boundary[f]) for f in SHOWN) + " | |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    print(markdown({run: json.loads((Path(run) / "metrics.json").read_text()) for run in sys.argv[1:]}))
