"""Semantic and panoptic heads from extraction to evaluation: what is written reads back to the figures told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Tiny, write_tiny
from tiny_panoptic import CATEGORIES, read_ids, write_panoptic
from typer.testing import CliRunner

from featcache import Cache
from pipeline import cases, evaluate, extract, predict, report, train
from pipeline.cli import app
from pipeline.data.panoptic import segment_classes
from pipeline.data.sources import Cached
from pipeline.errors import PipelineError
from pipeline.heads.mask2former import Mask2FormerConfig
from pipeline.masks.query_masks import QueryMasks
from pipeline.segment_scores import SegmentScores
from pipeline.training.checkpoint import load_head, read_run
from pipeline.training.config import TrainConfig
from pipeline.training.segment_objects import segment_targets
from pipeline.training.validation import _ap

SETTINGS = {
    "steps": "12", "batch_size": "4", "lr": "3e-3", "clip": "1.0", "log_every": "1", "hidden": "16", "heads": "2",
    "feed_forward": "32", "layers": "2", "queries": "9", "mask_points": "128", "object_threshold": "0.1",
    "overlap_threshold": "0.1",
}  # fmt: skip
UNANNOTATED = 79


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_tiny(tmp_path_factory.mktemp("segmentation") / "data")


@pytest.fixture(scope="module")
def cache(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = write_panoptic(tiny.annotations, without=UNANNOTATED)
    folder = tmp_path_factory.mktemp("segmentation") / "cache"
    return extract.main(**tiny.arguments, panoptic=file, cache=folder, views=("orig", "hflip"))


@pytest.fixture(scope="module")
def runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        task: train.main(cache=cache, head=f"mask2former-{task}", run=folder / task, settings=SETTINGS)
        for task in ("semantic", "panoptic")
    }


def test_the_cache_says_what_it_has(cache: Path) -> None:
    spec = Cache(cache).spec
    assert spec.further_truth == ("panoptic",)
    assert [one["id"] for one in spec.recipe["panoptic_categories"]] == sorted(one["id"] for one in CATEGORIES)
    assert "--panoptic" in spec.recipe["command"]
    assert "panoptic_sha256" in spec.dataset


def test_training_lowers_the_loss(runs: dict[str, Path]) -> None:
    for run in runs.values():
        losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_panoptic_results_read_back_to_the_figures(cache: Path, runs: dict[str, Path], tiny: Tiny) -> None:
    """By the rules of panopticapi, worked out again here over sets of pixels."""
    run = runs["panoptic"]
    metrics = evaluate.main(cache=cache, run=run)
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert {"segm", "bbox", "own_bbox", "panoptic", "semantic"} <= set(metrics)
    assert (metrics["panoptic"]["images"], metrics["images"]) == (7, 8)
    judged = judge(tiny.annotations.with_name("panoptic.json"), run / "panoptic.json")
    for suffix, wanted in (("", (0, 1)), ("_th", (1,)), ("_st", (0,))):
        chosen = [judged[one["id"]] for one in CATEGORIES if one["isthing"] in wanted and judged[one["id"]]]
        means = 100 * np.mean(chosen, axis=0) if chosen else [None] * 3
        for name, value in zip(("PQ", "SQ", "RQ"), means, strict=True):
            assert metrics["panoptic"][f"{name}{suffix}"] == pytest.approx(value, abs=1e-3)
    classes = json.loads((run / "metrics/segments.json").read_text())
    assert [row["name"] for row in classes] == ["square", "triangle", "disc", "ground", "sky"]


@pytest.mark.parametrize(("task", "figure"), [("panoptic", "PQ"), ("semantic", "mIoU")])
def test_best_and_worst_images_by_their_segments(
    cache: Path, runs: dict[str, Path], tmp_path: Path, task: str, figure: str
) -> None:
    """Each with what the images say alone, drawn beside its ground truth; on a sheet and in the report."""
    run = runs[task]
    metrics = evaluate.main(cache=cache, run=run)
    rows = json.loads((run / "metrics/segment_quality.json").read_text())
    assert len(rows) == metrics[task]["images"] == 7
    assert {"PQ" in row for row in rows} == {task == "panoptic"}
    values = sorted(row[figure] for row in rows)
    found = cases.find_cases(cache=cache, run=run, count=2)
    assert [case.value for case in found if case.kind == "best"] == values[:-3:-1]
    assert [case.value for case in found if case.kind == "worst"] == values[:2]
    assert {case.figure for case in found} == {figure}
    for case in found:
        assert case.words.startswith(f"{figure} {case.value:.1f}")
        assert case.truth.size == case.masks.size
        assert case.truth.tobytes() != case.masks.tobytes()
    out = tmp_path / "sheet.png"
    words = ["evaluate", "--cache", str(cache), "--run", str(run), "--sheet", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    with Image.open(out) as sheet:
        assert sheet.width > 4 * 400
    page = report.main(runs=[run], out=tmp_path / "report.html", cache=cache, count=2).read_text()
    assert page.count("segments of the head</div>") == 4
    assert report.ABOUT_CASES[figure] in page
    assert f"{task} {figure}" in page


def test_one_image_is_judged_as_a_set_of_one(cache: Path, runs: dict[str, Path]) -> None:
    source, (head, _) = Cached(cache), load_head(runs["panoptic"])
    batch = source.batch([(0, "orig")])
    queries = head.predict(batch.features, batch.counts)[0].queries
    assert queries is not None
    judged = SegmentScores(runs["panoptic"] / "one", queries, read_run(runs["panoptic"]).segment_categories)
    judged.add(batch, queries)
    figures = judged.write()
    judged.write_images(runs["panoptic"] / "one.json")
    (row,) = json.loads((runs["panoptic"] / "one.json").read_text())
    assert row == {
        "image_id": batch.infos[0].id,
        "PQ": figures["panoptic"]["PQ"],
        "mIoU": figures["semantic"]["mIoU"],
    }


def judge(truth_file: Path, found_file: Path) -> dict[int, list[float]]:
    """PQ, SQ and RQ of each category id; nothing where there is no such segment."""
    truths = json.loads(truth_file.read_text())["annotations"]
    founds = {one["image_id"]: one for one in json.loads(found_file.read_text())["annotations"]}
    tallies = {one["id"]: [0.0, 0, 0, 0] for one in CATEGORIES}
    assert set(founds) == {one["image_id"] for one in truths}
    for truth in truths:
        found = founds[truth["image_id"]]
        ids, told = (
            read_ids(file.with_suffix("") / one["file_name"])
            for file, one in ((truth_file, truth), (found_file, found))
        )
        assert set(np.unique(told)) - {0} == {one["id"] for one in found["segments_info"]}
        taken = set()
        for segment in found["segments_info"]:
            mine, category = told == segment["id"], segment["category_id"]
            assert mine.sum() == segment["area"]
            hit = False
            for other in truth["segments_info"]:
                theirs = ids == other["id"]
                iou = (mine & theirs).sum() / ((mine | theirs) & ~(mine & (ids == 0))).sum()
                if other["category_id"] == category and not other["iscrowd"] and iou > 0.5:
                    tallies[category][0] += iou
                    tallies[category][1] += 1
                    taken.add(other["id"])
                    hit = True
            same_crowd = [o["id"] for o in truth["segments_info"] if o["iscrowd"] and o["category_id"] == category]
            excused = (mine & np.isin(ids, [0, *same_crowd])).sum() / mine.sum() > 0.5
            tallies[category][2] += not hit and not excused
        for other in truth["segments_info"]:
            tallies[other["category_id"]][3] += not other["iscrowd"] and other["id"] not in taken
    return {
        category: [iou / size, iou / hits if hits else 0.0, hits / size] if (size := hits + 0.5 * (more + less)) else []
        for category, (iou, hits, more, less) in tallies.items()
    }


def test_semantic_results_read_back_to_the_figures(cache: Path, runs: dict[str, Path], tiny: Tiny) -> None:
    metrics = evaluate.main(cache=cache, run=runs["semantic"])
    assert "panoptic" not in metrics
    pixels: dict[tuple[int, int], int] = {}
    truth_file, found_file = tiny.annotations.with_name("panoptic.json"), runs["semantic"] / "semantic.json"
    founds = {one["image_id"]: one["file_name"] for one in json.loads(found_file.read_text())["annotations"]}
    for truth in json.loads(truth_file.read_text())["annotations"]:
        ids = read_ids(truth_file.with_suffix("") / truth["file_name"])
        told = read_ids(found_file.with_suffix("") / founds[truth["image_id"]])
        for segment in truth["segments_info"]:
            for category, count in zip(*np.unique(told[ids == segment["id"]], return_counts=True), strict=True):
                pair = segment["category_id"], int(category)
                pixels[pair] = pixels.get(pair, 0) + int(count)
    ious = []
    for category in {truth for truth, _ in pixels}:
        union = sum(count for pair, count in pixels.items() if category in pair)
        ious.append(pixels.get((category, category), 0) / union)
    assert metrics["semantic"]["mIoU"] == pytest.approx(100 * np.mean(ious), abs=1e-3)
    right = sum(count for (truth, found), count in pixels.items() if truth == found)
    assert metrics["semantic"]["pACC"] == pytest.approx(100 * right / sum(pixels.values()), abs=1e-3)


def test_a_head_that_knows_the_segments_is_right(cache: Path, runs: dict[str, Path]) -> None:
    """From the targets of training through masks on a grid to PQ: the frames of both agree, in a mirror too."""
    source, run = Cached(cache), read_run(runs["panoptic"])
    classes = run.widths.segments
    for view in ("orig", "hflip"):
        judged = None
        for index in range(len(source)):
            batch = source.batch([(index, view)])
            targets = segment_targets(batch, classes, "panoptic")
            if not len(targets):
                continue
            side = 128
            centres = (torch.arange(side) + 0.5) / side
            points = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).view(-1, 2)
            objects = targets.objects[0]
            logits = objects.sample(points).view(len(objects), side, side) * 20 - 10
            probs = torch.zeros(len(objects), len(classes) + 1)
            probs[torch.arange(len(objects)), objects.labels] = 1
            queries = QueryMasks(probs, logits, 1, (side, side), classes, "panoptic", 0.8, 0.8)
            judged = judged or SegmentScores(runs["panoptic"] / view, queries, run.segment_categories)
            judged.add(batch, queries)
        assert judged is not None
        figures = judged.write()
        assert figures["panoptic"]["RQ"] == 100
        assert figures["panoptic"]["SQ"] > 90  # type: ignore[operator]
        assert figures["semantic"]["mIoU"] > 60  # type: ignore[operator]  # the crowd is in no target


def test_targets(cache: Path) -> None:
    source = Cached(cache)
    batch = source.batch([(index, "orig") for index in range(len(source))])
    classes = segment_classes(source.spec)
    panoptic = segment_targets(batch, classes, "panoptic")
    assert len(panoptic) == 7
    assert batch.infos[({*range(8)} - {*panoptic.rows}).pop()].id == UNANNOTATED
    semantic = segment_targets(batch, classes, "semantic")
    for row, segments, merged in zip(panoptic.rows, panoptic.objects, semantic.objects, strict=True):
        truth = batch.segments(row)
        assert len(segments) == (~truth.iscrowd).sum()
        assert sorted(merged.labels.tolist()) == sorted({_label(classes, c) for c in truth.category_ids.tolist()})
        assert merged.masks.sum() == truth.areas.sum()
        assert segments.masks.sum() == truth.areas[~truth.iscrowd].sum()
        assert (segments.masks.sum(0) <= 1).all()


def test_a_part_of_the_batch_teaches_what_it_taught_alone(cache: Path, runs: dict[str, Path]) -> None:
    """Images without annotation change nothing, whatever their company."""
    head, _ = load_head(runs["panoptic"])
    source, config = Cached(cache), TrainConfig()
    pairs = [(index, "orig") for index in range(len(source))]
    blank = next(index for index in range(8) if source.cache.images[index].id == UNANNOTATED)
    values = []
    for chosen in (pairs, [pair for pair in pairs if pair[0] != blank]):
        batch = source.batch(chosen)
        targets = head.targets(batch, source.categories, config, torch.Generator())
        terms = head.loss(batch, targets, config, torch.Generator().manual_seed(0))
        values.append({name: term.item() for name, term in terms.items()})
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_features_without_segments_are_refused(tiny: Tiny, runs: dict[str, Path], tmp_path: Path) -> None:
    plain = extract.main(**tiny.arguments, cache=tmp_path / "plain")
    with pytest.raises(PipelineError, match="takes its classes from panoptic ground truth"):
        train.main(cache=plain, head="mask2former-panoptic", run=tmp_path / "run", settings=SETTINGS)
    with pytest.raises(PipelineError, match="no panoptic ground truth"):
        evaluate.main(cache=plain, run=runs["panoptic"])


def _label(classes: Any, category_id: int) -> int:
    return [one.category_id for one in classes].index(category_id)


def test_predict_draws_and_writes_segments(tiny: Tiny, runs: dict[str, Path], tmp_path: Path) -> None:
    arguments: Any = {"detector": str(tiny.toml), "weights": tiny.weights, "images": str(tiny.images)}
    for task, run in runs.items():
        out = predict.main(**arguments, run=run, out=tmp_path / task)
        listed = json.loads((out / f"{task}.json").read_text())
        assert len(listed["annotations"]) == len(list((out / "overlays").iterdir())) == 8
        drawn = 0
        for one, info in zip(listed["annotations"], json.loads((out / "images.json").read_text()), strict=True):
            ids = read_ids(out / task / one["file_name"])
            assert ids.shape == (info["height"], info["width"])
            assert set(np.unique(ids)) - {0} == {segment["id"] for segment in one["segments_info"]}
            drawn += len(one["segments_info"])
        assert drawn


def test_no_detection_asks_for_stuff() -> None:
    with pytest.raises(ValueError, match="task=panoptic with start=detector"):
        Mask2FormerConfig(task="panoptic", start="detector")


def test_the_best_weights_are_those_of_the_tasks_own_figure() -> None:
    assert _ap({"AP": 10.0}) == 10
    assert _ap({"AP": 10.0, "mIoU": 20.0}) == 20
    assert _ap({"AP": 10.0, "mIoU": 20.0, "PQ": None}) == -1
