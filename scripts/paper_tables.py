"""The tables of docs/reproduce.md: what the paper states for the rows of configs/ablations.

python scripts/paper_tables.py        `make docs` runs it, a test compares

They stand between `<!-- figures of the paper -->` and `<!-- end of figures -->`; the TOML files are the only home of
the figures.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduce.md"
TABLES = sorted((ROOT / "configs" / "ablations").glob("table*.toml"))
BLOCK = re.compile(r"(<!-- figures of the paper -->\n).*?(<!-- end of figures -->)", re.DOTALL)
COLUMNS = {
    "AP": ("AP", 1),
    "AP50": ("AP50", 1),
    "AP75": ("AP75", 1),
    "APs": ("APs", 1),
    "APm": ("APm", 1),
    "APl": ("APl", 1),
    "params": ("params (M)", 2),
    "gflops": ("multiply-adds (G)", 2),
    "gpu_hours": ("GPU hours", 0),
}
"""Keys of a row's `paper`; how a table names them, and the decimals that the paper prints."""


def fill(page: str) -> str:
    """The page with the figures that the TOML files hold today."""
    tables = "\n".join(paper_table(tomllib.loads(file.read_text())) for file in TABLES)
    return BLOCK.sub(lambda found: f"{found[1]}\n{tables}\n{found[2]}", page)


def paper_table(ablation: dict[str, Any]) -> str:
    """A Markdown table of the figures of an ablation's rows, under its title; only columns that the paper fills."""
    rows = [(row["name"], row.get("paper", {})) for row in ablation["rows"]]
    known = [(key, *COLUMNS[key]) for key in COLUMNS if any(key in paper for _, paper in rows)]
    lines = [
        f"**{ablation['about']}**",
        "",
        f"| | {' | '.join(name for _, name, _ in known)} |",
        "|---" * (len(known) + 1) + "|",
    ]
    for name, paper in rows:
        figures = [f"{paper[key]:.{digits}f}" if key in paper else "" for key, _, digits in known]
        lines.append(f"| {' | '.join([name, *figures])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
    print(PAGE)
