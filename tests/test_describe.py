"""Parameters and multiply-adds: every published cell of the paper's tables, parts by hand, and the command."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_tiny
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.describe import Description, describe, describe_ablation, detector_inputs, main
from pipeline.detectors.registry import build_detector
from pipeline.errors import PipelineError
from pipeline.training.ablation import Row, load_ablation
from pipeline.training.recipe import load_recipe, override

TABLES = ("table01", "table02", "table03", "table04", "table05", "table10", "table12", "table14", "table16")
"""Those of the paper that print parameters and multiply-adds."""
CELLS = [pytest.param(table, row, id=f"{table} {row.name}") for table in TABLES for row in load_ablation(table).rows]
EXCEPTIONS: dict[tuple[str, str], str] = {}
"""(table, row) whose multiply-adds are more than 5 % off the published ones, and why. None is: the largest difference
is 2.7 %, two Swin layers on the image, where ours attends twice in the windows at the seam of the shift."""

CELLS_E8, CELLS_C1, BOXES, ROI = 14_200, 56_800, 100, 32 * 32


@cache
def described(table: str) -> dict[str, Description]:
    return {description.name: description for description, _ in describe_ablation(ablation=table)}


@cache
def default_head(*settings: tuple[str, str], detector: str = "hdetr-r50") -> Description:
    return main(head="mask-frozen-detr", settings=dict(settings), detector=detector)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["describe", *(str(word) for word in words)])


@pytest.mark.parametrize(("table", "row"), CELLS)
def test_published_parameters_to_two_decimals(table: str, row: Row) -> None:
    assert f"{described(table)[row.name].params / 1e6:.2f}" == f"{row.paper['params']:.2f}"


@pytest.mark.parametrize(("table", "row"), CELLS)
def test_published_multiply_adds_within_five_per_cent(table: str, row: Row) -> None:
    within = described(table)[row.name].macs / 1e9 == pytest.approx(row.paper["gflops"], rel=0.05)
    assert within is ((table, row.name) not in EXCEPTIONS)


def test_the_tables_are_whole() -> None:
    """As many rows as the paper has, so that none is met by being left out."""
    assert {table: len(load_ablation(table).rows) for table in TABLES} == {
        "table01": 4, "table02": 10, "table03": 10, "table04": 4, "table05": 4, "table10": 3, "table12": 4,
        "table14": 2, "table16": 5,
    }  # fmt: skip


def test_parts_add_up() -> None:
    for table in ("table01", "table12"):
        for description in described(table).values():
            assert sum(cost.params for cost in description.parts.values()) == description.params
            assert sum(cost.macs for cost in description.parts.values()) == description.macs


def test_parts_of_the_default_head_by_hand() -> None:
    parts = default_head().parts
    tokens = CELLS_E8 + 50 * 71 + 25 * 36 + 13 * 18  # 800 x 1136 at strides 8 to 64, rounded up
    d = 256
    assert parts["image_encoder"].macs == 2 * tokens * (10 * d * d + 256 * d + 128 * d)
    assert parts["neck"].macs == CELLS_C1 * d * d
    assert parts["region_mapper"].macs == (CELLS_C1 + CELLS_E8) * d * 128
    assert parts["query_mapper"].macs == BOXES * d * 128
    d = 128
    assert parts["box_encoder"].macs == 2 * BOXES * ROI * (10 * d * d + 64 * d + 32 * d)
    box_to_object = 2 * d * d + 2 * d  # per cell: key and value; logit and sum
    assert parts["query_layers"].macs == 2 * BOXES * (ROI * box_to_object + 2 * d * d + 8 * d * d)
    convolutions = 9 * d * (129 * 16 * 16 + d * 8 * 8 + d * 4 * 4)
    assert parts["scoring"].macs == BOXES * (convolutions + 16 * d * d + d * d + 80 * d)
    assert parts["mask_head"].macs == BOXES * ROI * d
    assert parts["roi_align"].macs == BOXES * ROI * d * 17 + 4 * CELLS_C1 * d


@pytest.mark.parametrize("head", ["baseline", "mask-frozen-detr"])
def test_samples_of_roi_align_are_counted(head: str) -> None:
    """Each of the bins' samples is a sum of four products for each channel, of the mean image's 100 boxes."""
    one, two = (main(head=head, settings={"sampling_ratio": ratio}).parts["roi_align"].macs for ratio in (1, 2))
    channels = 256 if head == "baseline" else 128
    assert two - one == BOXES * ROI * channels * 4 * (4 - 1)


def test_convnext_by_hand() -> None:
    part = default_head(("image_encoder", "convnext"), ("image_layers", "1")).parts["image_encoder"]
    assert part.macs == CELLS_E8 * (49 * 256 + 8 * 256 * 256)
    assert part.params == 50 * 256 + 2 * 256 + 8 * 256 * 256 + 5 * 256 + 256


def test_swin_by_hand() -> None:
    d, padded = 256, 112 * 144  # 100 x 142 cells in windows of 16
    part = default_head(("image_encoder", "swin"), ("image_layers", "1")).parts["image_encoder"]
    assert part.macs == padded * (4 * d * d + 2 * 16 * 16 * d) + CELLS_E8 * 8 * d * d
    assert part.params == 12 * d * d + 9 * d + 31 * 31 * 8 + 4 * d


def test_a_five_scale_detector_has_no_neck_and_more_boxes() -> None:
    parts = default_head(detector="dino-focalnet-l").parts
    assert "neck" not in parts
    assert parts["mask_head"].macs == 300 * ROI * 128
    assert parts["region_mapper"].macs == CELLS_C1 * 256 * 128


def test_c1_of_any_width() -> None:
    assert detector_inputs("hdetr-swin-l").widths.channels["c1"] == 192
    assert default_head(detector="hdetr-swin-l").parts["neck"].params == 192 * 256 + 3 * 256


def test_widths_from_the_toml_are_those_of_the_detector() -> None:
    detector, inputs = build_detector("shapes-tiny"), detector_inputs("shapes-tiny")
    stored = {level.name: (level.channels, level.stride) for level in detector.levels}
    told = {name: (channels, inputs.widths.strides[name]) for name, channels in inputs.widths.channels.items()}
    assert stored.items() <= told.items()
    assert inputs.widths.encoder == detector.encoder
    assert (inputs.widths.query_dim, inputs.widths.classes) == (detector.query_dim, detector.classes)
    assert inputs.detections == detector.detections


def test_every_encoder_layer_can_be_described() -> None:
    costs = {default_head(("encoder_layer", str(layer))).macs for layer in (0, 2, 4, 6)}
    assert costs == {default_head().macs}


def test_describing_leaves_random_numbers_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    describe(override(load_recipe("unet"), {"hidden": "16"}), detector_inputs("shapes-tiny"))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_widths_of_a_cache_are_those_of_its_detector(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "data")
    options = [f"--{name}={value}" for name, value in tiny.arguments.items()]
    assert CliRunner().invoke(app, ["extract", *options, "--cache", str(tmp_path / "cache")]).exit_code == 0
    head = ("--head", "unet", "--json", "roi=8")
    cached = call(*head, "--cache", tmp_path / "cache")
    assert cached.exit_code == 0, cached.output
    live = call(*head, "--detector", tiny.toml, "--weights", tiny.weights)
    assert json.loads(cached.stdout) == json.loads(live.stdout)


@pytest.mark.parametrize(("name", "width", "side"), [("femto", 96, 416), ("atto", 64, 320)])
def test_an_onnx_detector_is_described_with_its_weights(shared: Path, name: str, width: int, side: int) -> None:
    inputs = detector_inputs(f"deimv2-{name}", shared / "weights" / f"deimv2_hgnetv2_{name}_coco.onnx")
    assert (inputs.widths.query_dim, inputs.detections, inputs.input_hw) == (width, 150, (side, side))
    parts = describe(load_recipe("mask-frozen-detr"), inputs).parts
    assert parts["query_mapper"].params == width * 128 + 128
    assert parts["mask_head"].macs == 150 * ROI * 128


def test_one_object_for_a_head_and_a_list_for_an_ablation() -> None:
    found: Any = json.loads(call("--head", "mask-frozen-detr", "--detector", "hdetr-r50", "--json").stdout)
    assert set(found) == {"name", "params", "macs", "parts"}
    assert (found["name"], found["params"]) == ("mask-frozen-detr", 3_261_712)
    assert found["parts"]["neck"] == {"params": 66_304, "macs": CELLS_C1 * 256 * 256}
    rows: Any = json.loads(call("--ablation", "table10", "--detector", "dino-focalnet-l", "--json").stdout)
    assert [row["name"] for row in rows] == ["16 x 16", "32 x 32", "64 x 64"]
    assert all(set(row) == {"name", "params", "macs", "parts"} for row in rows)
    assert "neck" not in rows[0]["parts"]


def test_the_tables_for_people() -> None:
    lines = call("--head", "mask-frozen-detr", "hidden=64").stdout.splitlines()
    assert lines[0].split() == ["part", "params", "(M)", "multiply-adds", "(G)"]
    assert lines[-1].split()[0] == "mask-frozen-detr"
    table = call("--ablation", "table14").stdout
    assert "published gflops" in table
    assert "83.77" in table
    assert "published" not in call("--ablation", "table15").stdout


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        ((), 2, "give --head or --ablation"),
        (("--head", "unet", "--ablation", "table01"), 2, "give --head or --ablation"),
        (("--ablation", "table01", "roi=8"), 2, "give --head with them"),
        (("--head", "unet", "--cache", "c", "--detector", "d"), 2, "give --cache or --detector"),
        (("--head", "unnet"), 2, "did you mean 'unet'?"),
        (("--head", "unet", "--detector", "hdetr-r5"), 2, "did you mean 'hdetr-r50'?"),
        (("--head", "unet", "--detector", "deimv2-femto"), 1, "--weights FILE"),
        (("--head", "mask-frozen-detr", "c1=false"), 1, "neck = false"),
    ],
)
def test_mistakes_name_the_remedy(words: tuple[str, ...], status: int, error: str) -> None:
    result = call(*words)
    assert (result.exit_code, error in result.stderr) == (status, True), result.output


def test_the_papers_tables_fit_detectors_of_other_widths() -> None:
    for table in ("table12", "table15"):
        assert len(describe_ablation(ablation=table, detector="hdetr-swin-l")) == len(load_ablation(table).rows)
    with pytest.raises(PipelineError, match="layer 4"):
        describe_ablation(ablation="table15", detector="shapes-tiny")  # its encoder has two
