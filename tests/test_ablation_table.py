"""Tables of heads: what a person and what a program reads."""

import csv
import math

import pytest

from pipeline.ablation_table import Line, csv_text, markdown, mean_and_spread

LINES = [
    Line(
        name="a | b",
        parameters=3_260_000,
        macs=82.09e9,
        seeds=(0, 1),
        figures={"AP": [24.0, 26.0], "AP50": [40.0, 40.0]},
        step_seconds=0.1234,
        step_bytes=5_000_000,
        paper={"AP": 45.7, "params": 3.26, "fps": 9},
    ),
    Line(name="never", parameters=1, problems=("seed 0: out of memory at step 3",)),
    Line(name="half", parameters=2, seeds=(1,), figures={"AP": [20.0]}, problems=("seed 0: the loss is not finite",)),
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]


def test_the_table_for_people() -> None:
    lines = markdown(LINES, ["AP", "params", "fps"], {"AP": 34.1}, ["a note"]).splitlines()
    head, rule, boxes, first, never, half = (cells(line) for line in lines[:6])
    assert {len(row) for row in (head, rule, boxes, first, never, half)} == {len(head)}
    row = dict(zip(head, first, strict=True))
    assert row["head"] == "a / b"
    assert (row["AP"], row["AP50"], row["APs"]) == (f"25.0 ± {math.sqrt(2):.1f} (45.7)", "40.0 ± 0.0", "-")
    assert (row["params (M)"], row["multiply-adds (G)"], row["step (ms)"], row["memory (MB)"]) == (
        "3.26 (3.26)", "82.09", "123.4", "5.0",
    )  # fmt: skip
    assert (row["seeds"], row["paper: fps"]) == ("2", "9")
    assert head[-2:] == ["seeds", "paper: fps"]
    assert boxes[1:3] == ["34.1", "-"]
    assert never[1:7] == ["failed"] * 6
    assert half[1] == "20.0"
    assert lines[7:] == [
        "- **never** failed: seed 0: out of memory at step 3",
        "- **half** failed: seed 0: the loss is not finite",
        "- a note",
    ]


def test_the_table_for_programs() -> None:
    first, never, half = csv.DictReader(csv_text(LINES, ["AP"]).splitlines())
    assert (first["name"], first["seeds"], float(first["AP"]), first["failed"]) == ("a | b", "0 1", 25.0, "")
    assert float(first["AP_std"]) == pytest.approx(math.sqrt(2), abs=1e-6)
    assert (int(first["params"]), float(first["macs"]), first["paper_AP"]) == (3_260_000, 82.09e9, "45.7")
    assert (never["AP"], never["AP_std"], never["macs"]) == ("", "", "")
    assert (half["AP"], half["AP_std"], half["failed"]) == ("20.0", "", "seed 0: the loss is not finite")


def test_without_multiply_adds_there_is_no_column_of_them() -> None:
    lines = [Line(name="a", parameters=1)]
    assert "multiply" not in markdown(lines, [], None, [])
    assert "macs" not in csv_text(lines, [])


def test_own_boxes_and_boundaries_have_columns_where_a_head_has_them() -> None:
    lines = [
        Line(name="a", parameters=1, seeds=(0,), figures={"AP": [5.0]}, beside={"boundary": [3.0]}),
        Line(name="b", parameters=1, seeds=(0, 1), beside={"own_bbox": [1.0, 3.0], "boundary": [4.0, 4.0]}),
    ]
    head, _, boxes, first, second = (cells(line) for line in markdown(lines, [], {"AP": 9.0}, []).splitlines()[:5])
    rows = [dict(zip(head, row, strict=True)) for row in (boxes, first, second)]
    assert [row["boundary AP"] for row in rows] == ["", "3.0", "4.0 ± 0.0"]
    assert [row["own box AP"] for row in rows] == ["", "-", f"2.0 ± {math.sqrt(2):.1f}"]
    first, second = csv.DictReader(csv_text(lines, []).splitlines())
    assert (first["own_bbox_AP"], second["own_bbox_AP"]) == ("", "2.0")
    assert float(second["own_bbox_AP_std"]) == pytest.approx(math.sqrt(2), abs=1e-6)
    assert "own box" not in markdown(lines[:1], [], None, [])
    assert "own_bbox" not in csv_text(lines[:1], [])


def test_spread_needs_two() -> None:
    assert mean_and_spread([]) == (None, None)
    assert mean_and_spread([3.0]) == (3.0, None)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
