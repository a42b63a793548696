"""Heads compared: a table as papers print them (CSV, Markdown) and a plot of AP against cost."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .masks.coco_eval import FIGURES

SHOWN = FIGURES[:6]
"""The precisions; the rest are recalls."""
BESIDE = {"own_bbox": "own box AP", "boundary": "boundary AP"}
"""What some heads have an AP of beside that of their masks, and its column."""


@dataclass(frozen=True)
class Line:
    """One head over its seeds."""

    name: str
    parameters: int
    macs: float | None = None
    """Multiply-adds for one image, None where nobody counted them."""
    seeds: tuple[int, ...] = ()
    """Those that came to the end."""
    figures: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """Figure -> percent for each of the seeds; without those figures that the images do not have."""
    beside: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """Those of `BESIDE` that this head has -> AP in percent for each of the seeds."""
    step_seconds: float | None = None
    """Of this head in a step of training, the batch already there."""
    step_bytes: int | None = None
    """Memory of this head in a step of training, beside the batch."""
    problems: tuple[str, ...] = ()
    """Why a seed did not come to the end."""
    paper: Mapping[str, float] = field(default_factory=dict[str, float])


def csv_text(lines: Sequence[Line], paper: Sequence[str]) -> str:
    """One line for each head: means, standard deviations over the seeds, costs in plain units, the paper's cells."""
    shown = [*SHOWN, *(f"{kind}_AP" for kind in _beside(lines))]
    figures = [name for figure in shown for name in (figure, f"{figure}_std")]
    costs = ["params", "macs", "step_seconds", "step_memory_bytes"]
    if all(line.macs is None for line in lines):
        costs.remove("macs")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "seeds", *figures, *costs, *(f"paper_{cell}" for cell in paper), "failed"])
    for line in lines:
        aps = {**line.figures, **{f"{kind}_AP": values for kind, values in line.beside.items()}}
        values = [value for figure in shown for value in mean_and_spread(aps.get(figure, ()))]
        cost = {
            "params": line.parameters,
            "macs": line.macs,
            "step_seconds": line.step_seconds,
            "step_memory_bytes": line.step_bytes,
        }
        published = [line.paper.get(cell) for cell in paper]
        row = [*(_rounded(value) for value in values), *(cost[name] for name in costs), *published]
        seeds = " ".join(map(str, line.seeds))
        writer.writerow([line.name, seeds, *("" if v is None else v for v in row), "; ".join(line.problems)])
    return out.getvalue()


def markdown(
    lines: Sequence[Line], paper: Sequence[str], boxes: Mapping[str, float | None] | None, notes: Sequence[str]
) -> str:
    """The same for people, the paper's figures in brackets beside ours, in columns of their own where we have none.

    boxes: the frozen detector's bbox figures, the first row. notes: a list under the table.
    """
    macs = any(line.macs is not None for line in lines)
    costs = ["params (M)", *(["multiply-adds (G)"] if macs else []), "step (ms)", "memory (MB)"]
    beside = {*SHOWN, "params", *(["gflops"] if macs else [])}
    others = [cell for cell in paper if cell not in beside]
    kinds = _beside(lines)
    heads = ["head", *SHOWN, *(BESIDE[kind] for kind in kinds), *costs, "seeds", *(f"paper: {cell}" for cell in others)]
    rows: list[list[str]] = []
    if boxes is not None:
        cells = [_figure([v]) if (v := boxes.get(name)) is not None else "-" for name in SHOWN]
        rows.append(["*boxes of the frozen detector (bbox)*", *cells, *[""] * (len(heads) - 1 - len(SHOWN))])
    for line in lines:
        failed = bool(line.problems) and not line.seeds
        figures = {name: "failed" if failed else _figure(line.figures.get(name, ())) for name in SHOWN}
        rows.append(
            [
                line.name,
                *(figures[name] + _published(line, name, 1) for name in SHOWN),
                *(_figure(line.beside.get(kind, ())) for kind in kinds),
                f"{line.parameters / 1e6:.2f}" + _published(line, "params", 2),
                *([_cell(line.macs, 1e-9, 2) + _published(line, "gflops", 2)] if macs else []),
                _cell(line.step_seconds, 1e3, 1),
                _cell(line.step_bytes, 1e-6, 1),
                str(len(line.seeds)),
                *(f"{line.paper[cell]:g}" if cell in line.paper else "" for cell in others),
            ]
        )
    failures = [f"**{line.name}** failed: {problem}" for line in lines for problem in line.problems]
    table = ["| " + " | ".join(_escaped(row)) + " |" for row in (heads, *rows)]
    table.insert(1, "|---" * len(heads) + "|")
    return "\n".join([*table, "", *(f"- {note}" for note in (*failures, *notes))]) + "\n"


def plot(lines: Sequence[Line], title: str, file: Path) -> Path:
    """AP against each known cost, a point for each head, bars of one standard deviation. Needs matplotlib.

    At least one head must have an AP.
    """
    from matplotlib.figure import Figure

    ended = [line for line in lines if line.figures.get("AP")]
    costs = {
        "multiply-adds for one image (10^9)": [None if line.macs is None else line.macs / 1e9 for line in ended],
        "parameters (10^6)": [line.parameters / 1e6 for line in ended],
        "step of training (ms)": [None if line.step_seconds is None else line.step_seconds * 1e3 for line in ended],
    }
    known = {label: values for label, values in costs.items() if any(value is not None for value in values)}
    figure = Figure(figsize=(3.6 * len(known) + 2.4, 3.6), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    for panel, (label, values) in enumerate(known.items(), start=1):
        axes = figure.add_subplot(1, len(known), panel)
        for number, (line, cost) in enumerate(zip(ended, values, strict=True)):
            if cost is None:
                continue
            mean, spread = statistics.fmean(line.figures["AP"]), mean_and_spread(line.figures["AP"])[1]
            shape, color = "osD^vPX*"[number // 10 % 8], f"C{number % 10}"
            axes.errorbar([cost], [mean], yerr=[spread or 0.0], fmt=shape, color=color, capsize=3, label=line.name)
        axes.margins(x=0.1, y=0.1)
        axes.set_xlabel(label)
        axes.set_ylabel("segm AP" if panel == 1 else "")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[list(known).index("parameters (10^6)")].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(file, dpi=120)
    return file


def mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None for what too few values do not give."""
    if not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _beside(lines: Sequence[Line]) -> list[str]:
    """Those of `BESIDE` that any head has."""
    return [kind for kind in BESIDE if any(line.beside.get(kind) for line in lines)]


def _figure(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    if mean is None:
        return "-"
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"


def _published(line: Line, cell: str, digits: int) -> str:
    return f" ({line.paper[cell]:.{digits}f})" if cell in line.paper else ""


def _cell(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]
