import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import Tiny, write_tiny

from featcache import Cache, CacheWriter
from pipeline import evaluate, evaluation, extract, train
from pipeline.data.coco import load_coco, read_image
from pipeline.data.sources import Batch, Cached
from pipeline.data.transforms import original_to_view, view_to_original, xywh_to_xyxy
from pipeline.detectors.registry import build_detector
from pipeline.errors import PipelineError, UsageError
from pipeline.heads.base import Masks
from pipeline.masks import rle
from pipeline.masks.coco_eval import FIGURES, coco_figures, coco_ground_truth
from pipeline.masks.image_results import finished, image_results
from pipeline.masks.references import box_logits
from pipeline.masks.results import box_results

DEIMV2 = {"femto": 34.1, "atto": 25.2}
"""Box AP on the real subset, from the README beside the weights."""


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return write_tiny(tmp_path / "data")


def read_back(tiny: Tiny, file: Path, kind: Any) -> list[float | None]:
    """The twelve figures that pycocotools gives for a file of results, beside the annotation file."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tiny.annotations)
        judge = COCOeval(truth, truth.loadRes(str(file)), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [None if value < 0 else round(100 * value, 4) for value in judge.stats.tolist()]


def never(_run: Path, error: Exception) -> None:
    """No head may drop out."""
    raise error


def perfect_cache(tiny: Tiny, path: Path, view: str = "orig") -> Path:
    """A cache whose detections are the ground-truth boxes, tight around the masks, with the right labels."""
    whole = extract.main(**tiny.arguments, cache=path.with_name("source"), views=(view,))
    source, coco = Cache(whole), load_coco(tiny.annotations)
    ids = [category["id"] for category in coco.categories]
    with CacheWriter(path, source.spec, coco.images, coco.ground_truth) as writer:
        for index, (info, truth) in enumerate(zip(coco.images, coco.ground_truth, strict=True)):
            hw, entry = (info.height, info.width), source.entry(index, view)
            kept = np.flatnonzero(~truth.iscrowd)
            tight = np.array([rle.box_xywh(truth.rles[k], hw) for k in kept]).reshape(-1, 4)
            boxes = original_to_view(xywh_to_xyxy(torch.from_numpy(tight)), hw, view).float()
            labels = torch.tensor([ids.index(c) for c in truth.category_ids[kept].tolist()], dtype=torch.int64)
            writer.put(
                index,
                view,
                maps=entry.maps,
                queries=entry.queries[: len(kept)],
                boxes=boxes,
                scores=torch.linspace(0.9, 0.5, len(kept)),
                labels=labels,
                input_hw=entry.input_hw,
            )
    return path


@pytest.mark.parametrize("view", ["orig", "hflip"])
def test_oracle_masks_in_perfect_boxes_are_perfect(tiny: Tiny, tmp_path: Path, view: str) -> None:
    cache = perfect_cache(tiny, tmp_path / "perfect", view)
    metrics = evaluate.main(cache=cache, run=tmp_path / "run", reference="oracle")
    assert metrics["segm"]["AP"] == 100
    assert metrics["bbox"]["AP50"] == 100
    assert metrics["mask_iou"] > 0.97
    assert metrics["matched"] == 14
    assert metrics["images"] == 8


def test_masks_on_a_grid_over_the_whole_image_are_pasted_there(tiny: Tiny, tmp_path: Path) -> None:
    source = Cached(perfect_cache(tiny, tmp_path / "perfect"))
    batch = source.batch([(0, "orig")])
    n, info = batch.counts[0], batch.infos[0]
    left_half = torch.full((n, 8, 8), -5.0)
    left_half[:, :, :4] = 5.0
    features = batch.features
    detections = {"boxes": features.boxes[0], "scores": features.scores[0], "labels": features.labels[0]}
    frames = torch.tensor([[0.5, 0.5, 1.0, 1.0]]).expand(n, 4)
    found = image_results(batch, Masks(left_half, **detections, frames=frames), source.categories)
    image_hw = (info.height, info.width)
    for result in found.masks:
        mask = rle.decode(result["segmentation"]["counts"].encode(), image_hw)
        assert mask[:, : info.width // 2 - 1].all()
        assert not mask[:, info.width // 2 + 1 :].any()


def test_filled_boxes_are_good_for_squares_only(tiny: Tiny, tmp_path: Path) -> None:
    cache = perfect_cache(tiny, tmp_path / "perfect")
    metrics = evaluate.main(cache=cache, run=tmp_path / "run", reference="box")
    assert metrics["bbox"]["AP50"] == 100
    assert 0 < metrics["segm"]["AP"] < 60
    assert 0.4 < metrics["mask_iou"] < 0.9


@pytest.mark.parametrize("reference", ["box", "oracle"])
def test_a_reference_reads_no_map(tiny: Tiny, tmp_path: Path, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = perfect_cache(tiny, tmp_path / "perfect")
    asked: list[Any] = []
    read = Cache.read
    monkeypatch.setattr(
        Cache, "read", lambda self, index, view, levels: [asked.append(levels), read(self, index, view, levels)][1]
    )
    evaluate.main(cache=cache, run=tmp_path / "run", reference=reference)
    assert asked == [()] * 8


def test_heads_evaluated_together_get_the_maps_of_all(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = perfect_cache(tiny, tmp_path / "perfect")
    rows = {"c1": {}, "no-c1": {"c1": "false"}}
    runs = [train.main(cache=cache, head="baseline", run=tmp_path / name, settings=one) for name, one in rows.items()]
    asked: list[Any] = []
    read = Cache.read
    monkeypatch.setattr(
        Cache, "read", lambda self, index, view, levels: [asked.append(levels), read(self, index, view, levels)][1]
    )
    alone = evaluate.main(cache=cache, run=runs[1])
    assert asked == [("e8",)] * 8
    for file in ("metrics.json", "evaluated.json"):
        (runs[1] / file).unlink()
    asked.clear()
    together = evaluation.evaluate_together(Cached(cache), runs, holdout=0, drop=never)
    assert asked == [("c1", "e8")] * 8
    assert together[runs[1]] == alone


def test_files_of_the_run_hold_what_is_returned(tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "c")
    metrics = evaluate.main(cache=cache, run=tmp_path / "run", reference="box")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results) == 8 * 20
    assert set(results[0]) == {"image_id", "category_id", "score", "segmentation"}
    assert {result["category_id"] for result in results} <= {1, 3, 7}
    boxes = json.loads((tmp_path / "run" / "boxes.json").read_text())
    assert set(boxes[0]) == {"image_id", "category_id", "score", "bbox"}
    place = [(result["image_id"], result["category_id"]) for result in results]
    assert place == [(box["image_id"], box["category_id"]) for box in boxes]


@pytest.mark.parametrize(("kind", "file"), [("segm", "results.json"), ("bbox", "boxes.json")])
@pytest.mark.parametrize("reference", ["box", "oracle"])
def test_pycocotools_reads_the_results_back_to_the_same_figures(
    tiny: Tiny, tmp_path: Path, kind: Any, file: str, reference: Any
) -> None:
    """From the files alone, by its own loader: no field of a result may mean something else to it."""
    cache = perfect_cache(tiny, tmp_path / "perfect") if reference == "oracle" else None
    cache = cache or extract.main(**tiny.arguments, cache=tmp_path / "c")
    metrics = evaluate.main(cache=cache, run=tmp_path / "run", reference=reference)
    assert [metrics[kind][name] for name in FIGURES] == read_back(tiny, tmp_path / "run" / file, kind)


def test_boxes_of_the_heads_own_have_an_ap_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    """Looser than the detector's, which are perfect, and in another order; all files are read back by pycocotools."""
    source, run = Cached(perfect_cache(tiny, tmp_path / "perfect")), tmp_path / "run"

    def predict(batch: Batch) -> Masks:
        boxes, labels = batch.features.boxes[0].flip(0), batch.features.labels[0].flip(0)
        loose = boxes * torch.tensor([1, 1, 1.3, 1.3])
        scores = torch.linspace(0.9, 0.5, len(boxes))
        return Masks(box_logits(boxes), loose, scores, labels, frames=boxes, own_boxes=True)

    indices = evaluation.images_to_evaluate(source, 0)
    arguments: dict[str, Any] = {"indices": indices, "identity": {}, "drop": never, "errors": True}
    metrics = evaluation.evaluate_contenders(source, [evaluation.Contender(run, predict)], **arguments)[run]
    assert metrics["bbox"]["AP50"] == 100
    assert metrics["own_bbox"]["AP75"] == 0  # 1 / 1.3^2 and a little
    for kind, iou_type, file in (
        ("segm", "segm", "results.json"),
        ("bbox", "bbox", "boxes.json"),
        ("own_bbox", "bbox", "own_boxes.json"),
    ):
        assert [metrics[kind][name] for name in FIGURES] == read_back(tiny, run / file, iou_type), kind
    rows = json.loads((run / "metrics" / "per_class.json").read_text())
    assert np.mean([row["own_bbox"]["AP"] for row in rows if row["objects"]]) == pytest.approx(
        metrics["own_bbox"]["AP"], abs=1e-3
    )
    assert np.mean(json.loads((run / "metrics" / "pr.json").read_text())["own_bbox"]["0.50"]) == pytest.approx(
        metrics["own_bbox"]["AP50"], abs=0.01
    )
    again = evaluate.main(cache=tmp_path / "perfect", run=run, reference="box")
    assert "own_bbox" not in again
    assert not (run / "own_boxes.json").exists()


def test_quality_in_the_image_ranks_the_masks() -> None:
    """The better class has the worse mask: after it is pasted it comes second, box and label with it."""
    logits = torch.full((2, 4, 4), 0.2)
    logits[1] = 4.0
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
    arguments: dict[str, Any] = {"boxes": boxes, "scores": torch.tensor([0.9, 0.7]), "labels": torch.tensor([3, 1])}
    masks, counts = finished(Masks(logits, **arguments, own_boxes=True, judge_pasted=True), (20, 40))
    torch.testing.assert_close(masks.scores, torch.tensor([0.7 * 0.98201, 0.9 * 0.54983]), atol=1e-4, rtol=0)
    assert masks.labels.tolist() == [1, 3]
    assert torch.equal(masks.boxes, boxes.flip(0))
    assert torch.equal(masks.mask_logits, logits.flip(0))
    assert (masks.own_boxes, masks.judge_pasted) == (True, False)
    assert [rle.box_xywh(one, (20, 40)) for one in counts] == [[20, 0, 20, 20], [0, 0, 20, 20]]
    as_they_are, _ = finished(Masks(logits, **arguments), (20, 40))
    assert as_they_are.labels.tolist() == [3, 1]


def test_boundary_ap_is_there_where_its_package_is(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was evaluated without it is evaluated again once it is installed, and not a third time."""
    cache = perfect_cache(tiny, tmp_path / "perfect")
    run = train.main(cache=cache, head="baseline", run=tmp_path / "run")
    source, counted = Cached(cache), []
    monkeypatch.setattr(evaluation, "boundary_known", lambda: False)
    arguments: dict[str, Any] = {"holdout": 0, "drop": never}
    assert "boundary" not in evaluation.evaluate_together(source, [run], **arguments)[run]
    monkeypatch.setattr(evaluation, "boundary_known", lambda: True)
    monkeypatch.setattr(evaluation, "boundary_figures", lambda *_: counted.append(1) or dict.fromkeys(FIGURES, 1.0))
    for _ in range(2):
        metrics = evaluation.evaluate_together(source, [run], **arguments)[run]
        assert metrics["boundary"] == dict.fromkeys(FIGURES, 1.0)
    assert counted == [1]


def test_classes_and_curves_average_to_the_figures(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    metrics = evaluate.main(cache=perfect_cache(tiny, tmp_path / "perfect"), run=run, reference="box")
    rows = json.loads((run / "metrics" / "per_class.json").read_text())
    assert [(row["category_id"], row["name"]) for row in rows] == [(1, "square"), (3, "triangle"), (7, "disc")]
    assert sum(row["objects"] for row in rows) == 14
    curves = json.loads((run / "metrics" / "pr.json").read_text())
    assert len(curves["recall"]) == 101
    for kind in ("segm", "bbox"):
        for figure, curve in (("AP", "mean"), ("AP50", "0.50"), ("AP75", "0.75")):
            values = [row[kind][figure] for row in rows if row["objects"]]
            assert np.mean(values) == pytest.approx(metrics[kind][figure], abs=1e-3)
            assert np.mean(curves[kind][curve]) == pytest.approx(metrics[kind][figure], abs=0.01)
        assert np.all(np.diff(curves[kind]["mean"]) <= 1e-9)


def test_only_loose_masks_lose_ap_in_perfect_boxes(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    metrics = evaluate.main(cache=perfect_cache(tiny, tmp_path / "perfect"), run=run, reference="box")
    left = json.loads((run / "metrics" / "lost_ap.json").read_text())
    now = metrics["segm"]["AP"]
    assert left == {"AP": now, "missed": now, "wrong_class": now, "false": now, "loose_mask": 100}
    assert evaluate.lost_in_words(run).endswith(f"false +0.0, loose mask {100 - now:+.1f}")


def test_one_run_alone_is_one_run_of_many(tiny: Tiny, tmp_path: Path) -> None:
    """The same loop: the same files, but for what costs more evaluations, which is not left over from before."""
    cache = extract.main(**tiny.arguments, cache=tmp_path / "c")
    runs = [train.main(cache=cache, head="baseline", run=tmp_path / name) for name in ("a", "b")]
    alone = evaluate.main(cache=cache, run=runs[0])
    evaluate.main(cache=cache, run=tmp_path / "box", reference="box")
    shutil.copytree(tmp_path / "box", runs[1], dirs_exist_ok=True)
    files = {file.relative_to(runs[0]): file.read_bytes() for file in runs[0].rglob("*.json")}

    together = evaluation.evaluate_together(Cached(cache), runs, holdout=0, drop=never)
    assert together[runs[0]] == together[runs[1]] == alone
    more = {Path("boxes.json"), Path("metrics/lost_ap.json")}
    for name in set(files) - more:
        assert (runs[1] / name).read_bytes() == files[name] == (runs[0] / name).read_bytes(), name
    assert not any((runs[1] / name).exists() for name in more)  # they were the reference's


def test_a_reference_keeps_away_from_the_figures_of_a_head(tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "c")
    run = train.main(cache=cache, head="baseline", run=tmp_path / "run")
    evaluate.main(cache=cache, run=run)
    before = {file: file.read_bytes() for file in run.rglob("*.json")}
    with pytest.raises(UsageError, match="is the run of a head") as caught:
        evaluate.main(cache=cache, run=run, reference="oracle")
    assert caught.value.hint.endswith(f"--run {run}-oracle")
    assert {file: file.read_bytes() for file in run.rglob("*.json")} == before
    misuse: list[tuple[str, dict[str, Any]]] = [
        ("--force", {"force": True}),
        ("--best", {"best": True}),
        ("--views", {"views": ["hflip"]}),
    ]
    for name, more in misuse:
        with pytest.raises(UsageError, match=f"{name} goes with a head"):
            evaluate.main(cache=cache, run=tmp_path / "box", reference="box", **more)
    assert not (tmp_path / "box").exists()


def test_only_the_cache_is_opened(tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "c")
    (tmp_path / "data").rename(tmp_path / "gone")
    assert evaluate.main(cache=cache, run=tmp_path / "run", reference="box")["images"] == 8


def test_a_trained_run_is_evaluated(tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "c")
    run = train.main(cache=cache, head="baseline", run=tmp_path / "run")
    metrics = evaluate.main(cache=cache, run=run)
    assert metrics["bbox"] == evaluate.main(cache=cache, run=tmp_path / "box", reference="box")["bbox"]
    assert metrics["segm"]["AP"] is not None


def test_a_head_of_other_features_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run = train.main(cache=extract.main(**tiny.arguments, cache=tmp_path / "c"), head="baseline", run=tmp_path / "run")
    tiny.toml.write_text(tiny.toml.read_text().replace("mean = [0.5", "mean = [0.4"))
    other = extract.main(**tiny.arguments, cache=tmp_path / "other")
    with pytest.raises(PipelineError, match="other features than the head was trained on: transform"):
        evaluate.main(cache=other, run=run)


def test_force_evaluates_on_other_features_and_warns(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train.main(cache=extract.main(**tiny.arguments, cache=tmp_path / "c"), head="baseline", run=tmp_path / "run")
    tiny.toml.write_text(tiny.toml.read_text().replace("mean = [0.5", "mean = [0.4"))
    other = extract.main(**tiny.arguments, cache=tmp_path / "other")
    with pytest.raises(PipelineError) as refused:
        evaluate.main(cache=other, run=run)
    assert "--force" in refused.value.hint
    assert not (run / "metrics.json").exists()
    assert evaluate.main(cache=other, run=run, force=True)["images"] == 8
    assert "warning: cache" in capsys.readouterr().err
    text = json.loads((run / "config.json").read_text())
    text["widths"]["query_dim"] = 4
    (run / "config.json").write_text(json.dumps(text))
    with pytest.raises(PipelineError, match=r"does not fit the features of .*: query_dim is 8, the head's is 4"):
        evaluate.main(cache=other, run=run, force=True)


def test_missing_images_are_left_out_and_told(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "c", shard=extract.Shard(1, 2))
    assert evaluate.main(cache=cache, run=tmp_path / "run", reference="box")["images"] == 4
    assert "4 of 8 images" in capsys.readouterr().err


def test_an_empty_cache_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    coco = load_coco(tiny.annotations)
    spec = Cache(extract.main(**tiny.arguments, cache=tmp_path / "c")).spec
    with CacheWriter(tmp_path / "empty", spec, coco.images, coco.ground_truth):
        pass
    with pytest.raises(PipelineError, match=r"no image of .* is extracted yet"):
        evaluate.main(cache=tmp_path / "empty", run=tmp_path / "run", reference="box")


@pytest.mark.parametrize("name", ["femto", "atto"])
def test_box_ap_on_real_images_is_the_published_one_through_adapter_and_cache(
    shared: Path, tmp_path: Path, name: str
) -> None:
    mini, weights = shared / "coco-mini", shared / "weights" / f"deimv2_hgnetv2_{name}_coco.onnx"
    arguments: dict[str, Any] = {
        "images": mini / "val2017",
        "annotations": mini / "annotations" / "instances_val2017.json",
    }
    coco, detector = load_coco(arguments["annotations"], arguments["images"]), build_detector(f"deimv2-{name}", weights)
    ids, results = [category["id"] for category in coco.categories], []
    for index, info in enumerate(coco.images):
        features = detector.detect(detector.transform(read_image(coco, index))[None])
        boxes = view_to_original(features.boxes[0], (info.height, info.width))
        results += box_results(info.id, boxes, features.scores[0], features.labels[0], ids)
    figures = coco_figures(coco_ground_truth(coco.images, coco.ground_truth, coco.categories), results, "bbox")
    assert figures["AP"] == pytest.approx(DEIMV2[name], abs=0.1)

    if name == "femto":
        cache = extract.main(detector=f"deimv2-{name}", weights=weights, **arguments, cache=tmp_path / "c")
        metrics = evaluate.main(cache=cache, run=tmp_path / "run", reference="box")
        assert metrics["bbox"] == figures
        assert metrics["segm"]["AP"] == pytest.approx(11.7, abs=0.2)  # the box filled as a mask
