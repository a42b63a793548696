"""The loss curve of a run as a picture: `python scripts/loss_curve.py runs/unet loss.png` reads its metrics.jsonl."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

TERMS = ("loss", "bce", "dice", "scoring")


def draw(run: Path, file: Path) -> Path:
    """Every loss term over the steps; returns `file`."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]  # a step without any object has none
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for term in TERMS:
        if rows and term in rows[0]:
            axes.plot([row["step"] for row in rows], [row[term] for row in rows], label=term, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(f"head '{run.name}'", loc="left")
    figure.savefig(file, dpi=120)
    return file


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]), Path(sys.argv[2])))
