"""From images to AP with views of crop and scale, by the embedded detector on drawn pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache import Cache
from pipeline import evaluate, extract, train
from pipeline.data.coco import load_coco, read_image, view_of
from pipeline.data.transforms import view_to_original, xywh_to_xyxy
from pipeline.detectors.registry import build_detector
from pipeline.masks.matching import match_boxes
from scripts.make_shapes import write_set

VIEWS = ("orig", "hflip", "crop1", "crop2", "lsj1", "scale0.5")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("drawn") / "set", 8, 51)


@pytest.fixture(scope="module")
def cache(annotations: Path) -> Path:
    return extract.main(
        detector="shapes-tiny",
        images=annotations.parent / "images",
        annotations=annotations,
        cache=annotations.parent / "cache",
        views=VIEWS,
        batch_size=2,
    )


def test_every_view_is_what_the_detector_saw(annotations: Path, cache: Path) -> None:
    opened, detector = Cache(cache), build_detector("shapes-tiny", None)
    coco = load_coco(annotations, annotations.parent / "images")
    assert opened.views == VIEWS
    for name in VIEWS:
        image = detector.transform(read_image(coco, 1), coco.view(1, name))
        entry = opened.entry(1, name)
        assert entry.input_hw == opened.entry(1, "orig").input_hw == image.shape[1:]
        torch.testing.assert_close(entry.boxes, detector.detect(image[None]).boxes[0])


@pytest.mark.parametrize("name", VIEWS)
def test_detections_of_every_view_lie_on_the_objects_of_the_original(cache: Path, name: str) -> None:
    """Of those that are in the window as a whole and no smaller there than what it learnt from, it finds most."""
    opened, objects, found = Cache(cache), 0, 0
    for index, info in enumerate(opened.images):
        entry, view = opened.entry(index, name), view_of(info, name)
        truth = opened.ground_truth(index)
        corners = xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh))
        x0, y0, x1, y1 = view.window
        inside = (corners[:, :2] >= torch.tensor([x0, y0])).all(1) & (corners[:, 2:] <= torch.tensor([x1, y1])).all(1)
        seen = inside & ((corners[:, 2:] - corners[:, :2]).amin(1) * info.width / (x1 - x0) >= 14)
        sure = entry.scores > 0.3
        boxes = view_to_original(entry.boxes[sure], view.image_hw, view)
        labels = torch.from_numpy(truth.category_ids) - 1
        pairs = match_boxes(boxes, entry.labels[sure], truth, labels)
        objects += int(seen.sum())
        found += sum(bool(seen[k]) for _, k in pairs)
    assert objects >= 5
    assert found >= 0.7 * objects


@pytest.mark.parametrize("views", [[], ["orig", "crop1", "crop2"], ["lsj1"], ["scale0.5"]])
def test_a_head_learns_from_them(cache: Path, tmp_path: Path, views: list[str]) -> None:
    settings = {"steps": "6", "warmup": "0", "batch_size": "2", "roi": "8", "hidden": "16", "views": json.dumps(views)}
    run = train.main(cache=cache, head="mask-frozen-detr", run=tmp_path / "run", settings=settings)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    assert evaluate.main(cache=cache, run=run)["segm"]["AP"] is not None


@pytest.mark.parametrize("views", [("crop1",), ("lsj1",), ("scale0.5",)])
def test_masks_of_the_oracle_go_back_to_the_original(annotations: Path, tmp_path: Path, views: tuple[str]) -> None:
    """The best masks in the boxes of a view, pasted, fit the objects of the original image."""
    path = extract.main(
        detector="shapes-tiny",
        images=annotations.parent / "images",
        annotations=annotations,
        cache=tmp_path / "cache",
        views=views,
    )
    metrics = evaluate.main(cache=path, run=tmp_path / "oracle", reference="oracle")
    assert metrics["matched"] >= 5
    assert metrics["mask_iou"] > 0.9
