"""The drawn set: exact masks, tight boxes, the same pictures for the same seed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.coco import load_coco
from pipeline.masks import rle
from scripts.make_shapes import CLASSES, LEAST_VISIBLE, LONG, SHORT, draw, write_set


@pytest.mark.parametrize("seed", range(12))
def test_a_drawing_has_disjoint_masks_in_tight_boxes(seed: int) -> None:
    drawing = draw(np.random.default_rng(seed))
    height, width = drawing.pixels.shape[:2]
    assert min(height, width) == SHORT
    assert max(height, width) in LONG
    assert 1 <= len(drawing.labels) <= 12
    assert len(drawing.labels) == len(drawing.masks)
    assert set(drawing.labels) <= set(range(len(CLASSES)))
    assert np.sum(drawing.masks, axis=0).max() == 1  # what one sees belongs to one object
    for mask, (left, top, right, bottom) in zip(drawing.masks, drawing.boxes_xyxy().astype(int), strict=True):
        assert mask[top:bottom, left:right].sum() == mask.sum() >= 40
        assert mask[top:bottom, left].any()
        assert mask[top:bottom, right - 1].any()
        assert mask[top, left:right].any()
        assert mask[bottom - 1, left:right].any()


def test_every_class_is_drawn_and_has_its_own_outline() -> None:
    seen: dict[int, list[float]] = {}
    for seed in range(60):
        drawing = draw(np.random.default_rng(seed))
        for label, mask, box in zip(drawing.labels, drawing.masks, drawing.boxes_xyxy(), strict=True):
            seen.setdefault(label, []).append(mask.sum() / ((box[2] - box[0]) * (box[3] - box[1])))
    assert set(seen) == set(range(len(CLASSES)))
    filled = {CLASSES[label]: float(np.median(shares)) for label, shares in seen.items()}
    assert filled["disc"] > 0.7  # pi / 4 of its box, less where hidden
    assert filled["ring"] < filled["disc"]
    assert filled["star"] < filled["disc"]


def test_an_object_is_painted_where_its_mask_is() -> None:
    drawing = draw(np.random.default_rng(3))
    background = ~np.any(drawing.masks, axis=0)
    for mask in drawing.masks:
        inside, around = drawing.pixels[mask].mean(0), drawing.pixels[background].mean(0)
        assert np.abs(inside - around).max() > 15
    assert LEAST_VISIBLE == 0.5


def test_a_written_set_is_coco_and_repeats(tmp_path: Path) -> None:
    first, again = write_set(tmp_path / "a", 3, 7), write_set(tmp_path / "b", 3, 7)
    other = write_set(tmp_path / "c", 3, 8)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    picture = Path("images") / "000002.png"
    assert (first.parent / picture).read_bytes() == (again.parent / picture).read_bytes()
    coco = load_coco(first, first.parent / "images", None)
    drawing = draw(np.random.default_rng([7, 2]))
    np.testing.assert_array_equal(np.asarray(Image.open(first.parent / picture)), drawing.pixels)
    truth = coco.ground_truth[1]
    masks = [rle.decode(counts, drawing.pixels.shape[:2]) for counts in truth.rles]
    np.testing.assert_array_equal(np.stack(masks), np.stack(drawing.masks))
    assert (truth.category_ids - 1).tolist() == drawing.labels


def test_a_set_of_another_seed_or_size_is_drawn_anew(tmp_path: Path) -> None:
    write_set(tmp_path, 2, 1)
    before = (tmp_path / "images" / "000001.png").stat().st_mtime_ns
    write_set(tmp_path, 2, 1)
    assert (tmp_path / "images" / "000001.png").stat().st_mtime_ns == before
    assert len(json.loads(write_set(tmp_path, 3, 1).read_text())["images"]) == 3
    one_seed = (tmp_path / "images" / "000001.png").read_bytes()
    write_set(tmp_path, 3, 2)
    assert (tmp_path / "images" / "000001.png").read_bytes() != one_seed
