"""The paper's figures: in docs/reproduce.md as the TOML files have them, in those as the paper has them."""

import re
import tomllib
from pathlib import Path

import paper_tables
import pytest
from paper_tables import PAGE, TABLES, fill, paper_table


def test_the_page_has_the_figures_of_today() -> None:
    page = PAGE.read_text()
    assert fill(page) == page
    assert all(f"**Table {number}: " in page for number in range(1, 17))


def test_a_table_has_the_columns_that_are_stated() -> None:
    rows = [{"name": "a", "paper": {"AP": 44.0, "params": 2.5}}, {"name": "b"}, {"name": "c", "paper": {"AP": 45.1}}]
    lines = paper_table({"about": "Some", "rows": rows}).splitlines()
    assert lines == [
        "**Some**",
        "",
        "| | AP | params (M) |",
        "|---|---|---|",
        "| a | 44.0 | 2.50 |",
        "| b |  |  |",
        "| c | 45.1 |  |",
    ]


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_the_figures_of_a_row_stand_in_one_line_of_the_paper(file: Path, shared: Path) -> None:
    lines = (shared / "references" / "mask-frozen-detr.md").read_text().splitlines()
    told = [{float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)} for line in lines]
    rows = [row for row in tomllib.loads(file.read_text())["rows"] if "paper" in row]
    assert rows
    for row in rows:
        assert set(row["paper"]) <= set(paper_tables.COLUMNS)
        assert any({float(figure) for figure in row["paper"].values()} <= numbers for numbers in told), row["name"]
