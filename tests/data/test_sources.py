"""The same answer with and without the cache; batches of unequal images."""

from pathlib import Path

import pytest
import torch
from tiny import Tiny, write_tiny

from featcache import Cache
from pipeline import extract
from pipeline.data.coco import load_coco
from pipeline.data.live import Live
from pipeline.data.sources import Cached, pad_maps
from pipeline.detectors.registry import build_detector
from pipeline.heads.base import Widths
from pipeline.heads.registry import build_head
from pipeline.training.recipe import load_recipe, override

PAIRS = [(0, "orig"), (3, "hflip"), (5, "orig")]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return write_tiny(tmp_path / "data")


@pytest.mark.parametrize(("codec", "tolerance"), [("none", 0.0), ("fp16", 1e-2), ("uint8", 3e-2)])
@pytest.mark.parametrize("head", ["mask-frozen-detr", "unet", "baseline"])
def test_a_head_says_the_same_of_live_and_of_cached_features(
    tiny: Tiny, tmp_path: Path, codec: extract.Codec, tolerance: float, head: str
) -> None:
    path = extract.main(**tiny.arguments, cache=tmp_path / "c", codec=codec, views=("orig", "hflip"))
    coco = load_coco(tiny.annotations, tiny.images)
    recipe = load_recipe(head)
    if head != "baseline":
        recipe = override(recipe, {"hidden": "16", "roi": "8"})
    torch.manual_seed(0)
    model = build_head(recipe.family, recipe.head, Widths.of_cache(Cache(path).spec)).eval()
    detector = build_detector(str(tiny.toml), tiny.weights)
    live = Live(detector, coco, extract.cache_spec(detector, coco, "none", ["orig", "hflip"])).batch(PAIRS)
    cached = Cached(path).batch(PAIRS)
    assert cached.infos == live.infos
    assert cached.views == live.views
    assert cached.counts == live.counts
    for one, other in zip(model.predict(live.features), model.predict(cached.features), strict=True):
        scale = one.mask_logits.abs().max().item()
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.labels, other.labels)
        assert torch.allclose(one.mask_logits, other.mask_logits, rtol=0, atol=tolerance * scale)


def test_padding_is_zero_and_keeps_the_memory_order() -> None:
    channels_last = [torch.randn(h, w, 3).permute(2, 0, 1) for h, w in ((2, 5), (4, 3))]
    padded = pad_maps(channels_last)
    assert padded.shape == (2, 3, 4, 5)
    assert torch.equal(padded[0, :, :2, :5], channels_last[0])
    assert torch.equal(padded[1, :, :4, :3], channels_last[1])
    assert padded.abs().sum() == sum(one.abs().sum() for one in channels_last)
    assert padded.is_contiguous(memory_format=torch.channels_last)
    equal = pad_maps([channels_last[0], channels_last[0]])
    assert equal.is_contiguous(memory_format=torch.channels_last)
