import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from tiny import write_coco

from pipeline.data.coco import contiguous_labels, load_coco, read_image
from pipeline.data.images import UnreadableImageError
from pipeline.errors import PipelineError
from pipeline.masks import rle


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_coco(tmp_path)


def changed(annotations: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    raw = json.loads(annotations.read_text())
    change(raw)
    annotations.write_text(json.dumps(raw))
    return annotations


def test_masks_areas_and_boxes_are_those_of_pycocotools(annotations: Path) -> None:
    coco = load_coco(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO(annotations)
    for info, truth in zip(coco.images, coco.ground_truth, strict=True):
        records = official.imgToAnns[info.id]
        assert truth.ids.tolist() == [record["id"] for record in records]
        assert truth.boxes_xywh.tolist() == [record["bbox"] for record in records]
        assert truth.areas.tolist() == [record["area"] for record in records]
        for counts, record in zip(truth.rles, records, strict=True):
            assert np.array_equal(rle.decode(counts, (info.height, info.width)), official.annToMask(record) == 1)


def test_images_and_categories_come_by_increasing_id(annotations: Path) -> None:
    coco = load_coco(annotations)
    assert [info.id for info in coco.images] == sorted(info.id for info in coco.images)
    assert [category["id"] for category in coco.categories] == [1, 3, 7]
    assert sum(truth.iscrowd.sum() for truth in coco.ground_truth) == 1
    assert [len(truth) for truth in coco.ground_truth].count(0) == 1


def test_labels_are_positions_of_categories(annotations: Path) -> None:
    coco = load_coco(annotations)
    truth = coco.ground_truth[0]
    labels = contiguous_labels(truth, coco.categories).tolist()
    assert [coco.categories[label]["id"] for label in labels] == truth.category_ids.tolist()


def test_limit_keeps_the_lowest_ids_and_changes_the_digest(annotations: Path) -> None:
    whole, three = load_coco(annotations), load_coco(annotations, limit=3)
    assert three.images == whole.images[:3]
    assert three.sha256 == whole.sha256
    assert three.digest() != whole.digest()


def test_missing_box_and_area_follow_from_the_mask(annotations: Path) -> None:
    def strip(raw: dict[str, Any]) -> None:
        for record in raw["annotations"]:
            del record["bbox"], record["area"]

    coco = load_coco(changed(annotations, strip))
    info, truth = coco.images[0], coco.ground_truth[0]
    mask = rle.decode(truth.rles[0], (info.height, info.width))
    assert truth.areas[0] == mask.sum()
    assert truth.boxes_xywh[0][2:].tolist() == [mask.any(0).sum(), mask.any(1).sum()]


def test_compressed_rle_is_taken_as_it_is(annotations: Path) -> None:
    before = load_coco(annotations).ground_truth[0].rles[0]
    info = load_coco(annotations).images[0]

    def compress(raw: dict[str, Any]) -> None:
        record = next(record for record in raw["annotations"] if record["image_id"] == info.id)
        record["segmentation"] = {"size": [info.height, info.width], "counts": before.decode()}

    assert load_coco(changed(annotations, compress)).ground_truth[0].rles[0] == before


def test_polygon_beyond_the_image_is_cut_to_it(annotations: Path) -> None:
    def enlarge(raw: dict[str, Any]) -> None:
        raw["annotations"][0]["segmentation"] = [[-50.0, -50.0, 500.0, -50.0, 500.0, 500.0, -50.0, 500.0]]

    coco = load_coco(changed(annotations, enlarge))
    index = next(i for i, truth in enumerate(coco.ground_truth) if 1 in truth.ids)
    hw = (coco.images[index].height, coco.images[index].width)
    assert rle.area(coco.ground_truth[index].rles[0], hw) == hw[0] * hw[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["annotations"][0].update(image_id=999), "annotation 1 names image 999, which is not listed"),
        (lambda raw: raw["annotations"][0].update(category_id=99), "annotation 1 names category 99"),
        (lambda raw: raw["annotations"][0].pop("segmentation"), "annotation 1 of image 100 has no mask"),
        (lambda raw: raw["annotations"][0].update(segmentation=[]), "has no mask"),
        (lambda raw: raw["annotations"][0].update(segmentation="x"), "mask that cannot be read"),
        (lambda raw: raw["annotations"][0].update(segmentation={"size": [1, 1], "counts": [1]}), "its size is"),
        (lambda raw: raw.update(images=[], annotations=[]), "lists no images"),
        (lambda raw: raw["images"].append(raw["images"][0]), "lists an image id twice"),
        (lambda raw: raw.pop("categories"), "has no 'categories' list"),
    ],
)
def test_broken_annotations_are_named(
    annotations: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(PipelineError, match=message):
        load_coco(changed(annotations, change))


def test_missing_and_malformed_files_are_named(tmp_path: Path, annotations: Path) -> None:
    with pytest.raises(PipelineError, match="no annotation file"):
        load_coco(tmp_path / "none.json")
    with pytest.raises(PipelineError, match="no image folder"):
        load_coco(annotations, tmp_path / "none")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(PipelineError, match="not readable JSON"):
        load_coco(tmp_path / "bad.json")


def test_an_image_of_another_size_than_annotated_is_unreadable(annotations: Path) -> None:
    coco = load_coco(
        changed(annotations, lambda raw: raw["images"][-1].update(height=41)), annotations.parent / "images"
    )
    with pytest.raises(UnreadableImageError, match="its annotation says 41 x"):
        read_image(coco, 0)
    assert read_image(coco, 1).size == (coco.images[1].width, coco.images[1].height)
