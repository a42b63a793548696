"""Same answer with and without the cache: the paper's head on live and on cached features of real detectors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectors.native_toys import perturbed
from safetensors.torch import save_file

from featcache import Cache
from pipeline import extract
from pipeline.config import from_table, shipped
from pipeline.data.coco import load_coco
from pipeline.data.live import Live
from pipeline.data.sources import Cached
from pipeline.detectors.native import NativeConfig, build_network
from pipeline.detectors.registry import CARD, build_detector, detector_table
from pipeline.heads.base import Widths
from pipeline.heads.registry import build_head
from pipeline.training.recipe import load_recipe
from scripts.make_shapes import write_set

Case = tuple[str, Path | None, Path, Path]
"""Detector, weights, annotations, images."""


def shapes_tiny(folder: Path, _request: pytest.FixtureRequest) -> Case:
    annotations = write_set(folder / "drawn", 2, 50)
    return "shapes-tiny", None, annotations, annotations.parent / "images"


def deimv2(_folder: Path, request: pytest.FixtureRequest) -> Case:
    shared: Path = request.getfixturevalue("shared")
    coco = shared / "coco-mini"
    weights = shared / "weights" / "deimv2_hgnetv2_femto_coco.onnx"
    return "deimv2-femto", weights, coco / "annotations" / "instances_val2017.json", coco / "val2017"


def hdetr_r50(folder: Path, request: pytest.FixtureRequest) -> Case:
    """The whole network with random weights, on images a quarter as large as its own."""
    toml = folder / "hdetr-r50.toml"
    text = shipped("detectors")["hdetr-r50"].read_text()
    assert "size = 800" in text
    assert "max_size = 1333" in text
    toml.write_text(text.replace("max_size = 1333", "max_size = 333").replace("size = 800", "size = 200"))
    table, _ = detector_table(str(toml))
    config = from_table(NativeConfig, {key: value for key, value in table.items() if key not in CARD}, str(toml))
    save_file(perturbed(build_network(config), 0).state_dict(), folder / "random.safetensors")
    coco: Path = request.getfixturevalue("shared") / "coco-mini"
    annotations = coco / "annotations" / "instances_val2017.json"
    return str(toml), folder / "random.safetensors", annotations, coco / "val2017"


@pytest.mark.parametrize("case", [shapes_tiny, deimv2, hdetr_r50])
def test_the_head_says_the_same_of_live_and_of_cached_features(
    case: Callable[[Path, pytest.FixtureRequest], Case], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name, weights, annotations, images = case(tmp_path, request)
    coco = load_coco(annotations, images, 2)
    detector = build_detector(name, weights)
    live = Live(detector, coco, extract.cache_spec(detector, coco, "none", ["orig"]))
    model, logits = None, dict[str, list[torch.Tensor]]()
    for codec in ("none", "fp16", "uint8"):
        cache = extract.main(
            detector=name,
            weights=weights,
            images=images,
            annotations=annotations,
            cache=tmp_path / codec,
            codec=codec,
            limit=2,
        )
        if model is None:
            recipe = load_recipe("mask-frozen-detr")
            torch.manual_seed(0)
            model = build_head(recipe.family, recipe.head, Widths.of_cache(Cache(cache).spec)).eval()
        source = Cached(cache)
        logits[codec] = [model.predict(source.batch([(i, "orig")]).features)[0].mask_logits for i in range(2)]
    assert model is not None
    logits["live"] = [model.predict(live.batch([(i, "orig")]).features)[0].mask_logits for i in range(2)]
    for image in range(2):
        seen = logits["live"][image]
        assert seen.std() > 0.05  # not a constant that anything would equal
        assert torch.equal(logits["none"][image], seen)
        torch.testing.assert_close(logits["fp16"][image], seen, rtol=0, atol=1e-2)
        masks = [one[image] > 0 for one in (logits["uint8"], logits["live"])]
        assert (masks[0] == masks[1]).float().mean() > 0.98
