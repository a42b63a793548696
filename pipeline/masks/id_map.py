"""Maps of segment ids: from and to COCO's panoptic PNG files, and painted from run-length masks. 0 is no segment."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache import GroundTruth

from . import rle

IdMap = NDArray[np.int64]
"""Segment id of each pixel, "h w"."""
VOID = 0


def read_png(file: Path) -> IdMap:
    """The ids of a PNG of COCO's panoptic format: red + 256 green + 65536 blue. Raises OSError."""
    with Image.open(file) as image:
        channels = np.asarray(image.convert("RGB"), dtype=np.int64)
    return channels @ np.array([1, 256, 65536])


def write_png(file: Path, ids: IdMap) -> None:
    """What `read_png` reads back."""
    channels = ids[..., None] // np.array([1, 256, 65536]) % 256
    Image.fromarray(channels.astype(np.uint8)).save(file)


def paint(truth: GroundTruth, image_hw: tuple[int, int]) -> IdMap:
    """Each segment under its row, counted from 1."""
    ids = np.zeros(image_hw, dtype=np.int64)
    for row, counts in enumerate(truth.rles, start=1):
        ids[rle.decode(counts, image_hw)] = row
    return ids
