"""Features that no cache may hold: the images before them are kept, level and image are named."""

import pytest
import torch
from world import World, call, same_arrays, told

from featcache import Cache
from pipeline.detectors.base import Features
from pipeline.detectors.onnx import OnnxDetector


@pytest.mark.parametrize(
    ("value", "codec"), [(float("nan"), "uint8"), (float("inf"), "fp16"), (float("-inf"), "none"), (1e6, "fp16")]
)
def test_features_that_cannot_be_stored_name_level_and_image(
    world: World, monkeypatch: pytest.MonkeyPatch, value: float, codec: str
) -> None:
    """The fourth image has the bad value; those before it are kept."""
    assert world.extract(world.folder("good"), "--codec", codec).exit_code == 0
    detect, calls = OnnxDetector.detect, iter(range(100))

    def spoilt(self: OnnxDetector, images: torch.Tensor) -> Features:
        features = detect(self, images)
        if next(calls) == 3:
            features.maps["e16"][0, 2, 1, 1] = value
        return features

    with monkeypatch.context() as patch:
        patch.setattr(OnnxDetector, "detect", spoilt)
        result = world.extract(world.new, "--codec", codec)
    where = f"image {Cache(world.cache).images[3].id}, view orig, level e16"
    told(
        result,
        f"{where}: value {value} at row 1, column 1, channel 2 cannot be stored as {codec}",
        "find out what makes the detector give it; codec none holds every finite float32",
    )
    assert Cache(world.new).done().tolist() == [True] * 3 + [False] * 5
    assert call("featcache", "verify", world.new, "--deep").exit_code == 0
    assert world.extract(world.new, "--codec", codec).exit_code == 0
    assert same_arrays(world.new, world.folder("good"))
