import numpy as np
from PIL import Image

from pipeline.masks.viz import FILL, class_colour, colour, draw_masks, outline, sheet


def block(height: int = 60, width: int = 80) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[30:50, 20:60] = True
    return mask


def test_outline_is_the_rim_of_the_mask() -> None:
    rim = outline(block())
    assert rim.sum() == 2 * 40 + 2 * 18
    assert outline(block(), 3)[32, 40]
    assert not outline(block(), 3)[33, 40]
    assert outline(np.ones((4, 5), dtype=bool)).sum() == 2 * 5 + 2 * 2  # the image border counts


def test_colours_of_many_objects_differ() -> None:
    assert len({colour(number) for number in range(50)}) == 50


def test_colours_of_classes_with_near_ids_differ_visibly() -> None:
    colours = np.array([class_colour(category_id) for category_id in range(1, 201)])
    for step in range(1, 30):
        assert np.abs(colours[step:] - colours[:-step]).max(1).min() > 16


def test_a_mask_is_filled_outlined_and_captioned_and_the_image_kept() -> None:
    image = Image.new("RGB", (80, 60), (100, 100, 100))
    drawn = np.asarray(draw_masks(image, [block()], ["cat 0.90"])).astype(float)
    paint = np.array(colour(0))
    np.testing.assert_allclose(drawn[40, 40], (1 - FILL) * 100 + FILL * paint, atol=1)
    assert drawn[49, 40].tolist() == paint.tolist()
    assert drawn[5, 70].tolist() == [100, 100, 100]
    assert drawn[15:30, 22:50].sum(-1).min() < 150  # dark letters above the mask
    assert np.asarray(image).mean() == 100


def test_empty_masks_and_no_masks_change_nothing() -> None:
    image = Image.new("RGB", (80, 60), (10, 20, 30))
    for masks in ([], [np.zeros((60, 80), dtype=bool)]):
        assert np.array_equal(np.asarray(draw_masks(image, masks, ["x"] * len(masks))), np.asarray(image))


def test_a_sheet_has_a_cell_for_every_image() -> None:
    red, blue = Image.new("RGB", (100, 50), "red"), Image.new("RGB", (50, 100), "blue")
    page = sheet([red, blue, red, red], columns=3, cell=(40, 30))
    assert page.size == (3 * 46 + 6, 2 * 36 + 6)
    pixels = np.asarray(page)
    assert pixels[21, 26].tolist() == [255, 0, 0]
    assert pixels[21, 26 + 46].tolist() == [0, 0, 255]
    assert pixels[21 + 36, 26].tolist() == [255, 0, 0]
    assert pixels[21 + 36, 26 + 46].tolist() == [255, 255, 255]
