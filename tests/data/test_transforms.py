import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.data.transforms import (
    Transform,
    cxcywh_to_xyxy,
    flip_boxes,
    original_to_view,
    view_to_original,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from pipeline.data.views import View, resolve

DETR = Transform("shortest", 800, 1333, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
boxes = arrays(np.float64, (5, 4), elements=st.floats(0.001, 1)).map(torch.from_numpy)
sides = st.integers(1, 3000)
VIEWS = st.sampled_from(["orig", "hflip", "scale0.1", "scale0.55", "crop1", "crop2", "lsj1", "lsj2", "lsj3"])


@settings(deadline=None)
@given(boxes)
def test_formats_of_boxes_round_trip(values: torch.Tensor) -> None:
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(values)), values)
    torch.testing.assert_close(xywh_to_xyxy(xyxy_to_xywh(values)), values)


@settings(deadline=None)
@given(boxes, sides, sides, VIEWS, st.integers(0, 10**12))
def test_view_and_original_frames_round_trip(
    values: torch.Tensor, height: int, width: int, name: str, image_id: int
) -> None:
    view = resolve(name, image_id, (height, width))
    there = view_to_original(values, (height, width), view)
    torch.testing.assert_close(original_to_view(there, (height, width), view), values)


@settings(deadline=None)
@given(sides, sides, VIEWS, st.integers(0, 10**12))
def test_the_whole_canvas_is_the_window(height: int, width: int, name: str, image_id: int) -> None:
    view = resolve(name, image_id, (height, width))
    canvas = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert view_to_original(canvas, (height, width), view)[0].tolist() == pytest.approx(view.window)


@settings(deadline=None)
@given(boxes)
def test_flipping_twice_changes_nothing(values: torch.Tensor) -> None:
    torch.testing.assert_close(flip_boxes(flip_boxes(values)), values)


def test_a_box_at_the_left_of_the_flipped_view_is_at_the_right_of_the_original() -> None:
    box = torch.tensor([[0.1, 0.5, 0.2, 0.4]])
    assert view_to_original(box, (100, 200), "hflip")[0].tolist() == pytest.approx([160, 30, 200, 70])


@pytest.mark.parametrize(
    ("image_hw", "network_hw"),
    [
        ((480, 640), (800, 1066)),  # 1066.67 is truncated, as in the DETR code
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),
        ((300, 1000), (400, 1333)),  # the long side limits
        ((333, 500), (800, 1201)),
        ((800, 1000), (800, 1000)),  # the short side fits already
        ((500, 500), (800, 800)),
    ],
)
def test_shortest_side_rule_of_detr(image_hw: tuple[int, int], network_hw: tuple[int, int]) -> None:
    assert DETR.network_hw(image_hw) == network_hw


@settings(deadline=None)
@given(sides, sides)
def test_no_network_input_has_more_pixels_than_the_largest(height: int, width: int) -> None:
    h, w = DETR.network_hw((height, width))
    assert h * w <= DETR.largest_hw()[0] * DETR.largest_hw()[1]  # rounding may take the long side past 1333, as in DETR
    assert Transform("square", 416).network_hw((height, width)) == (416, 416)


def test_transform_is_pil_bilinear_then_mean_and_std() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    transform = Transform("square", 16, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    resized = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR)) / 255
    expected = ((resized - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0]).transpose(2, 0, 1)
    np.testing.assert_allclose(transform(Image.fromarray(pixels)).numpy(), expected, atol=1e-6)


def test_flipped_view_is_the_mirror_image() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    transform = Transform("square", 24)
    torch.testing.assert_close(transform(image, "hflip"), transform(image).flip(-1), atol=1 / 255 + 1e-6, rtol=0)


def test_grey_and_transparent_images_become_rgb() -> None:
    for mode in ("L", "RGBA", "P"):
        assert Transform("square", 8)(Image.new(mode, (20, 10))).shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["crop1", "lsj2"])
def test_a_draw_needs_to_know_its_image(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' differs from image to image"):
        Transform("square", 8)(Image.new("RGB", (20, 10)), name)


def test_a_window_of_whole_pixels_is_the_cropped_image() -> None:
    """Where no pixel is resized, the canvas is the part itself."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    transform = Transform("shortest", 40, 60)
    for mirrored in (False, True):
        view = View((40, 60), (-6.0, 8.0, 54.0, 48.0), mirrored)
        canvas = np.zeros((40, 60, 3), dtype=np.float32)
        canvas[:32, 6:] = pixels[8:, :54] / 255
        expected = canvas[:, ::-1] if mirrored else canvas
        np.testing.assert_allclose(transform(Image.fromarray(pixels), view).numpy().transpose(1, 2, 0), expected)


def test_a_window_inside_is_what_the_enlarged_image_shows() -> None:
    """Twice the size, window in the middle: equal to the same part of the image resized as a whole."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(pixels).resize((120, 80), Image.Resampling.BILINEAR)) / 255
    shown = Transform("shortest", 40, 60)(Image.fromarray(pixels), View((40, 60), (10.0, 15.0, 40.0, 35.0)))
    np.testing.assert_allclose(shown.numpy().transpose(1, 2, 0), whole[30:70, 20:80], atol=1e-6)


def test_an_image_smaller_than_a_pixel_leaves_the_mean_colour() -> None:
    shown = Transform("square", 4, mean=(0.5, 0.5, 0.5))(
        Image.new("RGB", (3, 3), "white"), View((3, 3), (0, 0, 30, 30))
    )
    assert not shown.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("square", 0), "size is 0"),
        (("square", 10, 20), "max_size goes with"),
        (("shortest", 10), "max_size goes with"),
        (("shortest", 10, 5), "max_size 5 is below"),
        (("square", 10, 0, (0.0, 0.0, 0.0), (1.0, 0.0, 1.0)), "std is"),
    ],
)
def test_contradictions_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transform(*arguments)
