import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from perfect import perfect_cache, read_back
from tiny import Tiny

from featcache import Cache
from pipeline import evaluate, evaluation, extract, train
from pipeline.contender import Contender
from pipeline.data.sources import Batch, Cached
from pipeline.heads.base import Masks
from pipeline.masks.coco_eval import FIGURES
from pipeline.masks.references import box_logits


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
    together = evaluation.evaluate_together(Cached(cache), runs, holdout=0)
    assert asked == [("c1", "e8")] * 8
    assert together[runs[1]] == alone


def test_one_run_alone_is_one_run_of_many(tiny: Tiny, tmp_path: Path) -> None:
    """The same loop: the same files, but for what costs more evaluations, which is not left over from before."""
    cache = extract.main(**tiny.arguments, cache=tmp_path / "c")
    runs = [train.main(cache=cache, head="baseline", run=tmp_path / name) for name in ("a", "b")]
    alone = evaluate.main(cache=cache, run=runs[0])
    evaluate.main(cache=cache, run=tmp_path / "box", reference="box")
    shutil.copytree(tmp_path / "box", runs[1], dirs_exist_ok=True)
    files = {file.relative_to(runs[0]): file.read_bytes() for file in runs[0].rglob("*.json")}

    together = evaluation.evaluate_together(Cached(cache), runs, holdout=0)
    assert together[runs[0]] == together[runs[1]] == alone
    more = {Path("boxes.json"), Path("metrics/lost_ap.json")}
    for name in set(files) - more:
        assert (runs[1] / name).read_bytes() == files[name] == (runs[0] / name).read_bytes(), name
    assert not any((runs[1] / name).exists() for name in more)  # they were the reference's


def test_boxes_of_the_heads_own_have_an_ap_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    """Looser than the detector's, which are perfect, and in another order; all files are read back by pycocotools."""
    source, run = Cached(perfect_cache(tiny, tmp_path / "perfect")), tmp_path / "run"

    def predict(batch: Batch) -> Masks:
        boxes, labels = batch.features.boxes[0].flip(0), batch.features.labels[0].flip(0)
        loose = boxes * torch.tensor([1, 1, 1.3, 1.3])
        scores = torch.linspace(0.9, 0.5, len(boxes))
        return Masks(box_logits(boxes), loose, scores, labels, frames=boxes, own_boxes=True)

    indices = evaluation.images_to_evaluate(source, 0)
    arguments: dict[str, Any] = {"indices": indices, "identity": {}, "errors": True}
    metrics = evaluation.evaluate_contenders(source, [Contender(run, predict)], **arguments)[run]
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


def test_boundary_ap_is_there_where_its_package_is(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was evaluated without it is evaluated again once it is installed, and not a third time."""
    cache = perfect_cache(tiny, tmp_path / "perfect")
    run = train.main(cache=cache, head="baseline", run=tmp_path / "run")
    source, counted = Cached(cache), []
    monkeypatch.setattr(evaluation, "boundary_known", lambda: False)
    assert "boundary" not in evaluation.evaluate_together(source, [run], holdout=0)[run]
    monkeypatch.setattr(evaluation, "boundary_known", lambda: True)
    monkeypatch.setattr(evaluation, "boundary_figures", lambda *_: counted.append(1) or dict.fromkeys(FIGURES, 1.0))
    for _ in range(2):
        metrics = evaluation.evaluate_together(source, [run], holdout=0)[run]
        assert metrics["boundary"] == dict.fromkeys(FIGURES, 1.0)
    assert counted == [1]
