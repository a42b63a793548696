"""A head as a file: it says what the head says, with any number of boxes, and nothing of this project runs it."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from discs import write_discs
from typer.testing import CliRunner

from pipeline import export, train
from pipeline.cli import app
from pipeline.errors import PipelineError
from pipeline.heads import export_mode
from pipeline.heads.deformable import cell_centres
from pipeline.heads.mask_dino.selection import mask_boxes
from pipeline.heads.mask_frozen_detr import head as module_of_head
from pipeline.training.checkpoint import load_head

SMALL = {"hidden": "8", "roi": "8", "heads": "2", "steps": "1", "batch_size": "2"}
VARIANTS = {
    "paper": {},
    "every query layer, segmenter": {"query_encoder": '["o2o","b2o","ffn"]', "mask_head": "segmenter"},
    "convnext, direct": {"image_encoder": "convnext", "box_encoder": "convnext", "upsample": "direct"},
    "without c1": {"c1": "false", "neck": "false", "image_encoder": "none"},
    "older alignment, position on the input": {"aligned": "false", "sampling_ratio": "1", "box_position_on": "input"},
    "bare logits": {"mask_scale": "none", "mask_scoring_input": "logits"},
    "unet": {"box_encoder": "unet", "query_encoder": "[]", "query_modulation": "true", "mask_scoring": "false"},
}


DECODER = {
    "hidden": "8", "heads": "2", "layers": "3", "feed_forward": "16", "queries": "5", "mask_points": "16",
    "steps": "1", "batch_size": "2", "warmup": "0",
}  # fmt: skip
DINO = {**DECODER, "layers": "2", "denoising": "4"}
FAMILIES: dict[str, tuple[str, dict[str, str], list[str], list[str]]] = {
    "baseline": ("baseline", {}, ["c1", "e16", "boxes", "queries"], ["mask_logits"]),
    "baseline, older alignment": (
        "baseline",
        {"aligned": "false", "sampling_ratio": "1"},
        ["c1", "e16", "boxes", "queries"],
        ["mask_logits"],
    ),
    "baseline, whole image": ("baseline", {"roi_align": "false"}, ["c1", "e16", "queries"], ["mask_logits"]),
    "mask2former": ("mask2former", DECODER, ["c1", "e32", "e16"], ["class_logits", "mask_logits"]),
    "mask2former, detections": (
        "mask2former",
        {**DECODER, "start": "detector"},
        ["c1", "e32", "e16", "boxes", "queries", "labels", "scores"],
        ["class_logits", "mask_logits"],
    ),
    "mask-dino, detections": (
        "mask-dino",
        {**DINO, "start": "detector", "denoising": "0", "mask_cells": "2"},
        ["c1", "e32", "e16", "boxes", "queries", "labels", "scores"],
        ["class_logits", "own_boxes", "mask_logits"],
    ),
    "mask-dino": ("mask-dino", DINO, ["c1", "e32", "e16"], ["class_logits", "own_boxes", "mask_logits"]),
    "di-maskdino, more queries than a small image has tokens": (
        "di-maskdino",
        {**DINO, "queries": "12", "first_selected": "16", "guiding_tokens": "4", "residual": "true"},
        ["c1", "e32", "e16"],
        ["class_logits", "own_boxes", "mask_logits"],
    ),
}
"""Head, settings, inputs, outputs."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("export") / "cache")


def trained(cache: Path, run: Path, **settings: str) -> Path:
    return train.main(cache=cache, head="mask-frozen-detr", run=run, settings={**SMALL, **settings})


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_files_say_what_the_head_says(cache: Path, tmp_path: Path, variant: str) -> None:
    run = trained(cache, tmp_path / "run", **VARIANTS[variant])
    exported = export.main(cache=cache, run=run, out=tmp_path / "out")
    assert [one.file.name for one in exported] == ["head.pt2", "head.onnx"]
    for one in exported:
        assert one.difference <= export.MOST
        assert one.checks == 5
        assert one.free_maps


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_that_can_be_a_graph(cache: Path, tmp_path: Path, family: str) -> None:
    """Both files agree with the head on images of the cache, with any number of boxes and maps of other sizes."""
    name, settings, inputs, outputs = FAMILIES[family]
    run = train.main(cache=cache, head=name, run=tmp_path / "run", settings=settings)
    for one in export.main(cache=cache, run=run, out=tmp_path / "out"):
        assert one.difference <= export.MOST
        assert (one.checks, one.free_maps) == (5, True)
    told = json.loads((tmp_path / "out" / "inputs.json").read_text())
    assert (list(told["inputs"]), told["outputs"]) == (inputs, outputs)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "head.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == inputs


def test_onnxruntime_alone_runs_it_and_boxes_are_free(cache: Path, tmp_path: Path) -> None:
    run = trained(cache, tmp_path / "run")
    export.main(cache=cache, run=run, out=tmp_path / "out", formats=["onnx"])
    told = json.loads((tmp_path / "out" / "inputs.json").read_text())
    maps = {name: [1, 8, "h", "w"] for name in ("c1", "e16", "e32")}
    assert told["inputs"] == {**maps, "boxes": ["n", 4], "queries": ["n", 8]}
    assert told["outputs"] == ["mask_logits", "iou"]
    assert told["boxes"] == "xyxy in pixels of the network input"
    assert [category["name"] for category in told["categories"]] == ["disc", "ring"]
    graph = onnx.load(tmp_path / "out" / "head.onnx")
    assert {node.domain for node in graph.graph.node} == {""}  # standard operators only
    assert "RoiAlign" in {node.op_type for node in graph.graph.node}
    session = onnxruntime.InferenceSession(tmp_path / "out" / "head.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    sides = {"c1": 16, "e16": 4, "e32": 2}
    given = {name: rng.normal(size=(1, 8, side, side)).astype(np.float32) for name, side in sides.items()}
    queries = rng.normal(size=(9, 8)).astype(np.float32)
    boxes = np.tile(np.array([[4, 4, 40, 50]], dtype=np.float32), (9, 1))
    nine: list[Any] = list(session.run(None, {**given, "boxes": boxes, "queries": queries}))
    assert [one.shape for one in nine] == [(9, 8, 8), (9, 2)]
    two: list[Any] = list(session.run(None, {**given, "boxes": boxes[:2], "queries": queries[:2]}))
    np.testing.assert_allclose(two[0], nine[0][:2], atol=1e-5)


def test_what_was_checked_is_told_as_json_too(cache: Path, tmp_path: Path) -> None:
    run, out = trained(cache, tmp_path / "run"), tmp_path / "out"
    words = ["export", str(run), "--cache", str(cache), "--out", str(out), "--format", "pt2", "--json"]
    result = CliRunner().invoke(app, words)
    (told,) = json.loads(result.stdout)
    assert [*told] == ["file", "difference", "checks", "free_maps"]
    assert told["file"] == str(out / "head.pt2")
    assert told["free_maps"] is True


def test_a_file_that_says_something_else_is_taken_away(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong operator in place of RoIAlign: its result is not close."""
    right = export_mode._roi_align
    monkeypatch.setattr(export_mode, "_roi_align", lambda *given, **options: 1.01 * right(*given, **options))
    run = trained(cache, tmp_path / "run")
    with pytest.raises(PipelineError, match=r"head.onnx did not come out right: it differs from the head by"):
        export.main(cache=cache, run=run, out=tmp_path / "out", formats=["onnx"])
    assert not (tmp_path / "out" / "head.onnx").exists()


def test_queries_of_one_score_are_the_same_queries(cache: Path, tmp_path: Path) -> None:
    """Of equal tokens it does not matter which are chosen, and masks give their boxes, empty ones too."""
    run = train.main(cache=cache, head="mask-dino", run=tmp_path / "run", settings=DINO)
    export.main(cache=cache, run=run, out=tmp_path / "out", formats=["onnx"])
    head, _ = load_head(run)
    module = export.exported_head(head, "mask-dino")
    (sample, *_) = export._samples(export.Cached(cache), module.maps, 1)
    maps = {name: one.clone() for name, one in sample.features.maps.items()}
    maps["e16"][:, :, :, :2], maps["e16"][:, :, :, 2:] = maps["e16"][:, :, :1, :1], maps["e16"][:, :, -1:, -1:]
    ties = replace(sample, features=replace(sample.features, maps=maps))
    run_file = export._load_onnx(module, tmp_path / "out" / "head.onnx")
    with torch.inference_mode():
        for said, told in zip(module.expected(ties), run_file(*module.inputs_of(ties)), strict=True):
            torch.testing.assert_close(told, said, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_masks_give_the_same_boxes_in_a_graph(tmp_path: Path, kind: str) -> None:
    class Boxes(torch.nn.Module):
        def forward(self, mask_logits: torch.Tensor) -> torch.Tensor:
            return mask_boxes(mask_logits)

    masks = torch.randn(1, 7, 5, 6)
    masks[0, 0] = -1  # empty
    masks[0, 1] = 1
    masks[0, 2] = -1
    masks[0, 2, 3, 4] = 1  # one cell
    masks[0, 3:] -= 1.5
    if kind == "pt2":
        program = torch.export.export(Boxes(), (masks,), strict=False).module()
        boxes = program(masks)
    else:
        torch.onnx.export(Boxes(), (masks,), tmp_path / "b.onnx", dynamo=False, opset_version=export.OPSET)
        session = onnxruntime.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
        (boxes,) = session.run(None, {session.get_inputs()[0].name: masks.numpy()})
    expected = mask_boxes(masks)
    known = [[1, 1, 0, 0], [0.5 - 0.5 / 6, 0.4, 5 / 6, 0.8], [4 / 6, 0.6, 0, 0]]
    torch.testing.assert_close(expected[0, :3], torch.tensor(known))
    torch.testing.assert_close(torch.as_tensor(boxes), expected)


def test_rows_that_changed_places_are_the_same_and_others_are_not(cache: Path, tmp_path: Path) -> None:
    run = train.main(cache=cache, head="mask-dino", run=tmp_path / "run", settings=DINO)
    module = export.exported_head(load_head(run)[0], "mask-dino")
    said = [torch.randn(5, 2), torch.rand(5, 4), torch.randn(5, 4, 4)]
    moved = [one[[0, 2, 1, 3, 4]] for one in said]
    assert export._difference(module, said, moved) == 0
    assert export._difference(module, said, [one[[0, 2, 2, 3, 4]] for one in said]) > 0.01
    assert export._difference(module, said, [moved[0], moved[1] + 0.01, moved[2]]) > 0.009
    assert export._difference(module, said, [one[:4] for one in said]) == float("inf")


def test_an_image_whose_choices_hang_on_rounding_is_not_checked_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train.main(cache=cache, head="mask-dino", run=tmp_path / "run", settings=DINO)
    monkeypatch.setattr(export, "ROUNDING", 0.5)
    with pytest.raises(PipelineError, match="no image to check an export on: of each, rounding errors change"):
        export.main(cache=cache, run=run, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_features_are_refused(cache: Path, tmp_path: Path) -> None:
    baseline = train.main(cache=cache, head="baseline", run=tmp_path / "baseline")
    other = write_discs(tmp_path / "other", name="other")
    with pytest.raises(PipelineError, match="other features than the head was trained on: name"):
        export.main(cache=other, run=baseline, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_heads_are_as_before_after_an_export() -> None:
    before = dict(vars(module_of_head))
    with contextlib.suppress(ZeroDivisionError), export_mode.export_mode():
        assert module_of_head.roi_align is not before["roi_align"]
        raise ZeroDivisionError
    assert vars(module_of_head) == before


def test_the_head_in_export_mode_is_the_head(cache: Path, tmp_path: Path) -> None:
    head, _ = load_head(trained(cache, tmp_path / "run", query_encoder='["o2o","b2o","ffn"]'))
    module = export.exported_head(export._plain(head), "mask-frozen-detr")
    (sample, *_) = export._samples(export.Cached(cache), module.maps, 1)
    with torch.inference_mode(), export_mode.export_mode():
        logits, iou = module(*module.inputs_of(sample))
    with torch.inference_mode():
        expected = head(sample.features, [sample.boxes], [sample.queries])
    torch.testing.assert_close(logits, expected.mask_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(iou, expected.iou, atol=1e-4, rtol=0)
    for h, w in ((1, 1), (3, 5)):
        torch.testing.assert_close(export_mode._cell_centres(h, w), cell_centres(h, w))
