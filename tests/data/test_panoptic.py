"""Panoptic annotations are stored as they are, and what is wrong with them is said."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import write_coco
from tiny_panoptic import CATEGORIES, read_ids, write_panoptic

from pipeline.data.coco import CocoSet, load_coco
from pipeline.data.panoptic import load_panoptic
from pipeline.errors import PipelineError
from pipeline.masks import rle
from pipeline.masks.id_map import paint, read_png, write_png


@pytest.fixture
def coco(tmp_path: Path) -> CocoSet:
    return load_coco(write_coco(tmp_path))


@pytest.fixture
def file(coco: CocoSet, tmp_path: Path) -> Path:
    del coco
    return write_panoptic(tmp_path / "annotations.json")


def test_segments_give_the_png_back(coco: CocoSet, file: Path) -> None:
    found = load_panoptic(file, None, coco.images)
    assert list(found.categories) == sorted(CATEGORIES, key=lambda one: one["id"])
    crowds = 0
    for info, truth in zip(coco.images, found.segments(coco.images), strict=True):
        expected = read_ids(file.with_suffix("") / f"{info.id:012d}.png")
        image_hw = (info.height, info.width)
        ids = np.array([0, *truth.ids])[paint(truth, image_hw)]
        assert (ids == expected).all()
        assert truth.areas.tolist() == [(expected == i).sum() for i in truth.ids]
        assert [rle.box_xywh(counts, image_hw) for counts in truth.rles] == truth.boxes_xywh.tolist()
        crowds += int(truth.iscrowd.sum())
    assert crowds == 1


def test_png_round_trip(tmp_path: Path) -> None:
    ids = np.array([[0, 255, 256], [65535, 65536, 256**3 - 1]])
    write_png(tmp_path / "ids.png", ids)
    assert (read_png(tmp_path / "ids.png") == ids).all()
    assert (read_ids(tmp_path / "ids.png") == ids).all()


def test_an_image_without_annotation_has_no_segments(
    coco: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = coco.images[3].id
    found = load_panoptic(write_panoptic(tmp_path / "annotations.json", without=missing), None, coco.images)
    assert "1 of 8 images have no panoptic annotation" in capsys.readouterr().err
    assert [len(truth) == 0 for truth in found.segments(coco.images)] == [i == 3 for i in range(8)]


def test_another_folder_may_hold_the_maps(coco: CocoSet, file: Path, tmp_path: Path) -> None:
    elsewhere = file.with_suffix("").rename(tmp_path / "maps")
    with pytest.raises(PipelineError, match=r"no folder .*panoptic of panoptic PNG"):
        load_panoptic(file, None, coco.images)
    assert len(load_panoptic(file, elsewhere, coco.images).segments(coco.images[:1])[0])


def test_what_is_wrong_is_said(coco: CocoSet, file: Path, tmp_path: Path) -> None:
    raw = json.loads(file.read_text())

    def refused(match: str, content: object) -> None:
        file.write_text(json.dumps(content))
        with pytest.raises(PipelineError, match=match):
            load_panoptic(file, None, coco.images).segments(coco.images)

    first = raw["annotations"][0]
    segments = first["segments_info"]
    others = {**raw, "annotations": raw["annotations"][1:]}

    def with_first(**changes: object) -> dict[str, object]:
        return {**others, "annotations": [{**first, **changes}, *others["annotations"]]}

    refused("is no COCO panoptic JSON", {"images": []})
    refused("lists none of the 8 images", {**raw, "annotations": []})
    refused("which .*panoptic.json does not list", with_first(segments_info=segments[1:]))
    refused("1 pixels|pixels in", with_first(segments_info=[{**segments[0], "area": 1}, *segments[1:]]))
    refused("category 99", with_first(segments_info=[{**segments[0], "category_id": 99}, *segments[1:]]))
    refused("cannot be read", with_first(file_name="nowhere.png"))
    Image.new("RGB", (5, 5)).save(file.with_suffix("") / "small.png")
    refused("has the size", with_first(file_name="small.png"))
    with pytest.raises(PipelineError, match="no panoptic annotation file"):
        load_panoptic(tmp_path / "nowhere.json", None, coco.images)
