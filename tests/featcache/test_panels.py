"""Pages of pictures: every panel whole, in reading order, boxes where they belong."""

import numpy as np
from PIL import Image

from featcache.panels import PAGE_WIDTH, Box, Panel, page, panel_size

RED, BLUE = (250, 0, 0), (0, 0, 250)


def panel(width: int, *boxes: Box) -> Panel:
    return Panel("caption", Image.new("RGB", (width, 100), RED), BLUE, boxes)


def count(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == colour).all(2).sum())


def test_panels_that_do_not_fit_go_on_in_the_next_row() -> None:
    one, three = page("title", [panel(700)]), page("title", [panel(700), panel(700), panel(700)])
    assert count(one, RED) == 700 * 100
    assert count(three, RED) == 3 * 700 * 100
    assert three.width <= PAGE_WIDTH
    assert three.height > one.height + 100


def test_a_box_is_drawn_on_its_edges_and_leaves_the_rest() -> None:
    drawn = page("title", [panel(300, ("", (0.25, 0.25, 0.75, 0.75)))])
    pixels = (np.asarray(drawn) == BLUE).all(2)
    ys, xs = np.nonzero(pixels)
    assert np.ptp(xs) == round(0.5 * 299)
    assert np.ptp(ys) == round(0.5 * 99)
    assert count(drawn, RED) == 300 * 100 - pixels.sum()


def test_boxes_beyond_the_picture_or_turned_round_are_drawn_inside_it() -> None:
    boxes: list[Box] = [("words", (-1.0, -1.0, 2.0, 2.0)), ("words", (0.9, 0.9, 0.1, 0.1)), ("", (0.5, 0.5, 0.5, 0.5))]
    drawn = page("title", [panel(300, *boxes), panel(300)])
    assert count(drawn, RED) > 300 * 100
    assert count(drawn, BLUE) > 2 * (300 + 100)


def test_words_of_boxes_at_one_place_do_not_cover_each_other() -> None:
    def ground(boxes: int) -> int:
        return count(page("", [panel(300, *[("word", (0.1, 0.5, 0.9, 0.9))] * boxes)]), BLUE)

    outline = count(page("", [panel(300, ("", (0.1, 0.5, 0.9, 0.9)))]), BLUE)
    assert ground(2) - outline > 1.5 * (ground(1) - outline)


def test_a_panel_keeps_the_shape_of_its_picture() -> None:
    for height, width in ((480, 640), (640, 480), (10, 4000)):
        w, h = panel_size(height, width)
        assert abs(w * height - h * width) <= max(height, width)
        assert w <= PAGE_WIDTH
