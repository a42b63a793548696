"""AP of boxes and masks over the decoder's layers, a colour for each run: `python scripts/layer_curve.py PNG RUN...`

Reads what `python -m pipeline evaluate --per-layer` wrote.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.layer_ap import read_layers


def draw(file: Path, runs: Sequence[Path]) -> Path:
    """Left: AP of masks (solid) and of the head's own boxes (dashed). Right: masks minus boxes. Returns `file`."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    both, balance = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        rows = read_layers(run)
        layers = [row["layer"] for row in rows]
        masks, boxes = ([row[kind]["AP"] for row in rows] for kind in ("segm", "own_bbox"))
        color = f"C{number}"
        both.plot(layers, masks, color=color, marker="o", markersize=4, label=f"{run.name}: masks")
        both.plot(layers, boxes, color=color, marker="s", markersize=4, linestyle="--", label=f"{run.name}: boxes")
        difference = [mask - box for mask, box in zip(masks, boxes, strict=True)]
        balance.plot(layers, difference, color=color, marker="o", markersize=4, label=run.name)
    both.set_ylabel("AP")
    both.set_ylim(bottom=0)
    balance.set_ylabel("mask AP - own box AP")
    balance.axhline(0, color="grey", linewidth=0.8)
    for axes in (both, balance):
        axes.set_xlabel("decoder layer (0: before the first)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=120)
    return file


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]]))
