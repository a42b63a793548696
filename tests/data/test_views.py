"""Names of views, and the windows they stand for."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.transforms import Transform, cxcywh_to_xyxy, original_to_view
from pipeline.data.views import View, check_view, resolve
from pipeline.errors import UsageError

DRAWS = st.builds(lambda kind, number: f"{kind}{number}", st.sampled_from(["crop", "lsj"]), st.integers(1, 99))
IDS, SIDES = st.integers(0, 10**12), st.integers(1, 3000)
ROOT = Path(__file__).parents[2]


@settings(deadline=None)
@given(SIDES, SIDES, IDS)
def test_orig_and_hflip_show_the_image(height: int, width: int, image_id: int) -> None:
    for name in ("orig", "hflip"):
        view = resolve(name, image_id, (height, width))
        assert view == View((height, width), (0, 0, width, height), name == "hflip")
        assert view.whole


@settings(deadline=None)
@given(st.integers(1, 99), IDS, SIDES, SIDES)
def test_a_crop_is_a_part_of_half_the_sides_or_more(number: int, image_id: int, height: int, width: int) -> None:
    x0, y0, x1, y1 = resolve(f"crop{number}", image_id, (height, width)).window
    assert x0 >= 0
    assert y0 >= 0
    assert x1 <= width + 1e-9
    assert y1 <= height + 1e-9
    assert 0.5 - 1e-9 <= (x1 - x0) / width <= 1
    assert (x1 - x0) / width == pytest.approx((y1 - y0) / height)


@settings(deadline=None)
@given(st.integers(1, 99), IDS, SIDES, SIDES)
def test_jittering_shows_a_part_or_the_whole_at_the_top_left(
    number: int, image_id: int, height: int, width: int
) -> None:
    view = resolve(f"lsj{number}", image_id, (height, width))
    x0, y0, x1, y1 = view.window
    scale = width / (x1 - x0)
    assert 0.1 - 1e-9 <= scale <= 2 + 1e-9
    assert scale == pytest.approx(height / (y1 - y0))
    if scale >= 1:
        assert min(x0, y0, width + 1e-9 - x1, height + 1e-9 - y1) >= 0
    else:
        corners = cxcywh_to_xyxy(original_to_view(torch.tensor([[0, 0, width, height]]), (height, width), view))
        assert corners[0].tolist() == pytest.approx([0, 0, scale, scale], abs=1e-9)


def test_draws_are_spread_as_they_say() -> None:
    views = [resolve(f"lsj{number}", image_id, (100, 200)) for number in (1, 2) for image_id in range(2000)]
    scales = np.array([200 / (view.window[2] - view.window[0]) for view in views])
    assert np.allclose(np.quantile(scales, [0.25, 0.5, 0.75]), [0.575, 1.05, 1.525], atol=0.06)
    assert abs(np.mean([view.mirrored for view in views]) - 0.5) < 0.04
    large = [view for view, scale in zip(views, scales, strict=True) if scale > 1]
    right, down = ([v.window[i] / (s - v.window[i + 2] + v.window[i]) for v in large] for i, s in ((0, 200), (1, 100)))
    assert abs(np.mean(right) - 0.5) < 0.04
    assert abs(np.corrcoef(right, down)[0, 1]) < 0.08


def test_a_draw_is_the_same_in_another_process() -> None:
    names, ids = ("crop1", "crop2", "lsj1", "lsj2"), (1, 2, 139, 581929)
    script = (
        "from pipeline.data.views import resolve\n"
        f"print([resolve(name, image_id, (427, 640)) for name in {names} for image_id in {ids}])"
    )
    there = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [resolve(name, image_id, (427, 640)) for name in names for image_id in ids]
    assert there.stdout.strip() == str(here)
    assert len({view.window for view in here}) == len(here)


def test_a_draw_stays_what_it_was_in_caches_written_before() -> None:
    """The numbers of this release: were they to change, resumed extractions would mix two windows."""
    crop, jittered = (resolve(name, 139, (426, 640)) for name in ("crop1", "lsj1"))
    assert crop.window == (125.61495930500826, 130.98260423632303, 544.0498722980345, 409.50334319730615)
    assert jittered.window == (115.86495352356319, 2.525317504554867, 549.7616352676755, 291.3377962904797)
    assert (crop.mirrored, jittered.mirrored) == (False, False)


@pytest.mark.parametrize("name", ["orig", "hflip", "crop1", "crop12", "lsj3", "scale0.1", "scale0.25", "scale1"])
def test_known_names(name: str) -> None:
    assert check_view(name) == name


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("hflp", "hflip"),
        ("vflip", "hflip"),
        ("crop", "crop1"),
        ("crop0", "crop1"),
        ("crop01", "crop1"),
        ("lsj", "lsj1"),
        ("scale", "scale0.5"),
        ("scale0.05", "scale0.5"),
        ("scale0.50", "scale0.5"),
        ("scale2", "scale0.5"),
        ("", ""),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, suggested: str) -> None:
    with pytest.raises(UsageError, match=f"unknown view '{name}'") as caught:
        resolve(name, 1, (10, 10))
    assert f"'{suggested}" in caught.value.hint
    assert "lsj1" in caught.value.hint


@settings(deadline=None, max_examples=60)
@given(DRAWS | st.sampled_from(["orig", "hflip", "scale0.3", "scale0.9"]), IDS)
def test_a_drawn_rectangle_lies_where_its_box_says(name: str, image_id: int) -> None:
    """On the canvas, every pixel whose centre is well inside the box is white, well outside black or mean colour."""
    image_hw = (90, 120)
    pixels = np.zeros((*image_hw, 3), dtype=np.uint8)
    pixels[30:70, 20:75] = 255
    view = resolve(name, image_id, image_hw)
    canvas = Transform("shortest", 180, 240)(Image.fromarray(pixels), view)[0].numpy()
    box = original_to_view(torch.tensor([[20.0, 30.0, 75.0, 70.0]]), image_hw, view)
    x0, y0, x1, y1 = (cxcywh_to_xyxy(box)[0] * torch.tensor([240, 180, 240, 180])).tolist()
    x, y = np.arange(240) + 0.5, np.arange(180)[:, None] + 0.5
    blur = 1.01 + 240 / 120 * 120 / (view.window[2] - view.window[0])  # the resize mixes a pixel of either grid
    inside = (x > x0 + blur) & (x < x1 - blur) & (y > y0 + blur) & (y < y1 - blur)
    outside = (x < x0 - blur) | (x > x1 + blur) | (y < y0 - blur) | (y > y1 + blur)
    assert np.allclose(canvas[inside], 1)
    assert np.allclose(canvas[outside], 0)
