"""What of an image the detector sees: a window of it, mirrored or not. A cache holds features by the names of views.

`orig` is the image, `hflip` its mirror image. `scale0.5` is the whole image at half its size. `lsj1`, `lsj2` ... are
draws of large-scale jittering, `crop1`, `crop2` ... draws of a milder crop for small data sets; a draw follows from the
name and the image id alone, so that a resumed or sharded extraction repeats it. The network input, the *canvas*, is as
large as that of `orig`; where a window reaches beyond the image, the canvas has the mean colour (zero once normalised).
The detector takes it for part of the picture, and so does every head: no cell of a canvas counts as padding.
"""

import hashlib
import re
from dataclasses import dataclass

from ..errors import UsageError, nearest

FIXED = ("orig", "hflip")
"""Views without a number."""
KNOWN = "orig, hflip, crop1, crop2 ..., lsj1, lsj2 ..., scale0.1 to scale1"
_EXAMPLES = (*FIXED, "crop1", "lsj1", "scale0.5")
_DRAWN = re.compile(r"(crop|lsj)[1-9]\d*")
_SCALE = re.compile(r"scale(1|0\.\d*[1-9])")

LSJ_SCALES = (0.1, 2.0)
"""Least and largest size of the image on the canvas (Copy-Paste's and detectron2's large-scale jittering)."""
CROP_SHARES = (0.5, 1.0)
"""Least and largest share of each side of the image that a crop shows."""


@dataclass(frozen=True)
class View:
    """One view of one image."""

    image_hw: tuple[int, int]
    window: tuple[float, float, float, float]
    """What the canvas shows, xyxy in pixels of the original image; may reach beyond it."""
    mirrored: bool = False
    """Whether the canvas shows the window left to right."""

    @property
    def whole(self) -> bool:
        """Whether the window is the image, no more and no less."""
        return self.window == (0, 0, self.image_hw[1], self.image_hw[0])


def check_view(name: str) -> str:
    """`name` itself if it is that of a view; raises UsageError that suggests the nearest."""
    scale = _SCALE.fullmatch(name)
    if name in FIXED or _DRAWN.fullmatch(name) or (scale and float(scale[1]) >= LSJ_SCALES[0]):
        return name
    raise UsageError(f"unknown view '{name}'", f"did you mean {nearest(name, _EXAMPLES, cutoff=0)}? known: {KNOWN}")


def resolve(name: str, image_id: int, image_hw: tuple[int, int]) -> View:
    """The view of that name of one image; raises UsageError for an unknown name."""
    check_view(name)
    if name in FIXED:
        return View(image_hw, _window(image_hw, 1.0, 0.0, 0.0), name == "hflip")
    if scale := _SCALE.fullmatch(name):
        return View(image_hw, _window(image_hw, float(scale[1]), 0.0, 0.0))
    size, x, y, coin = _uniform(f"{name}:{image_id}")
    if name.startswith("crop"):
        share = CROP_SHARES[0] + size * (CROP_SHARES[1] - CROP_SHARES[0])
        return View(image_hw, _window(image_hw, 1 / share, x, y), coin < 0.5)
    scale, mirrored = LSJ_SCALES[0] + size * (LSJ_SCALES[1] - LSJ_SCALES[0]), coin < 0.5
    if scale < 1:  # the canvas is filled up at its right and bottom; seen in a mirror, the right is the left
        x, y = float(mirrored), 0.0
    return View(image_hw, _window(image_hw, scale, x, y), mirrored)


def as_view(view: View | str, image_hw: tuple[int, int]) -> View:
    """A view as it is; a name that means the same for every image (no draw), resolved."""
    if isinstance(view, View):
        return view
    if _DRAWN.fullmatch(view):
        raise ValueError(f"view '{view}' differs from image to image: resolve it with the image's id")
    return resolve(view, 0, image_hw)


def _window(image_hw: tuple[int, int], scale: float, x: float, y: float) -> tuple[float, float, float, float]:
    """What a canvas shows of an image `scale` times its size; x and y, 0 to 1, say how far right and down it lies."""
    height, width = image_hw
    shown_w, shown_h = width / scale, height / scale
    left, top = x * (width - shown_w) + 0.0, y * (height - shown_h) + 0.0  # never -0.0
    return left, top, left + shown_w, top + shown_h


def _uniform(seed: str) -> list[float]:
    """Four numbers in [0, 1) that follow from the text, the same on every machine and in every process."""
    digest = hashlib.sha256(seed.encode()).digest()
    return [(int.from_bytes(digest[i : i + 8], "big") >> 11) / 2**53 for i in range(0, 32, 8)]
