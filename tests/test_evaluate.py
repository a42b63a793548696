import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from perfect import perfect_cache, read_back
from tiny import Tiny

from featcache import Cache, CacheWriter
from pipeline import evaluate, extract, train
from pipeline.data.coco import load_coco, read_image
from pipeline.data.transforms import view_to_original
from pipeline.detectors.registry import build_detector
from pipeline.errors import PipelineError, UsageError
from pipeline.masks.coco_eval import FIGURES, coco_figures, coco_ground_truth
from pipeline.masks.results import box_results

DEIMV2 = {"femto": 34.1, "atto": 25.2}
"""Box AP on the real subset, from the README beside the weights."""


@pytest.mark.parametrize("view", ["orig", "hflip"])
def test_oracle_masks_in_perfect_boxes_are_perfect(tiny: Tiny, tmp_path: Path, view: str) -> None:
    cache = perfect_cache(tiny, tmp_path / "perfect", view)
    metrics = evaluate.main(cache=cache, run=tmp_path / "run", reference="oracle")
    assert metrics["segm"]["AP"] == 100
    assert metrics["bbox"]["AP50"] == 100
    assert metrics["mask_iou"] > 0.97
    assert metrics["matched"] == 14
    assert metrics["images"] == 8


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
