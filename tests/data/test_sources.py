"""The same answer with and without the cache; batches of unequal images."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny

from featcache import Cache, CacheError
from pipeline import extract
from pipeline.data import sources
from pipeline.data.coco import load_coco
from pipeline.data.live import Live
from pipeline.data.sources import Cached, FeatureSource, pad_maps
from pipeline.detectors.registry import build_detector
from pipeline.errors import PipelineError
from pipeline.heads.base import Widths
from pipeline.heads.registry import build_head
from pipeline.training.recipe import load_recipe, override

PAIRS = [(0, "orig"), (3, "hflip"), (5, "orig")]


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


def test_only_the_maps_asked_for_are_there(tiny: Tiny, tmp_path: Path) -> None:
    path = extract.main(**tiny.arguments, cache=tmp_path / "c", codec="none", views=("orig", "hflip"))
    coco, detector = load_coco(tiny.annotations, tiny.images), build_detector(str(tiny.toml), tiny.weights)
    cached = Cached(path)
    sources: list[FeatureSource] = [cached, Live(detector, coco, cached.spec)]
    order: dict[str, Any] = {"views": ("orig", "hflip"), "indices": range(8), "seed": 1}
    for source in sources:
        whole, part, none = (source.batch(PAIRS, levels) for levels in (None, ("e16",), ()))
        assert (set(whole.features.maps), set(whole.features.moments)) == ({"c1", "e8", "e16"}, {"c1"})
        assert set(part.features.maps) == {"e16"}
        assert not none.features.maps
        assert not part.features.moments
        assert torch.equal(part.features.map("e16"), whole.features.map("e16"))
        for name in ("queries", "boxes", "scores", "labels", "input_hw"):
            assert torch.equal(getattr(none.features, name), getattr(whole.features, name))
        with pytest.raises(PipelineError, match="no map 'c1', only e16"):
            _ = part.features.c1
        with pytest.raises(PipelineError, match="no map 'e8', only e16"):
            _ = part.features.levels
        streams = [source.stream(3, **order, levels=levels) for levels in (None, ("e16",), ())]
        for batches in itertools.islice(zip(*streams, strict=True), 12):
            assert len({tuple((info.id, *batch.views) for info in batch.infos) for batch in batches}) == 1
            assert [set(batch.features.maps) for batch in batches] == [{"c1", "e8", "e16"}, {"e16"}, set()]
            assert torch.equal(batches[0].features.map("e16"), batches[1].features.map("e16"))


def test_what_is_not_asked_for_is_not_read(tiny: Tiny, tmp_path: Path) -> None:
    path = extract.main(**tiny.arguments, cache=tmp_path / "c", codec="none")
    read: list[int] = []
    for levels in (None, ("c1",), ("e16",), ()):
        source = Cached(path)
        source.batch([(0, "orig")], levels)
        read.append(source.cache.bytes_read)
    whole, c1, e16, none = read
    assert whole - c1 >= 4 * 8 * (8 * 8 + 4 * 4) * 0.5  # e8 and e16 in float32, compressed
    assert none < e16 < c1 < whole
    for file in path.glob("views/orig/maps/c1/c.*"):
        file.write_bytes(b"spoilt")
    source = Cached(path)
    source.batch([(0, "orig")], ("e8", "e16"))
    with pytest.raises(CacheError):
        source.batch([(0, "orig")])


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


@pytest.mark.parametrize(
    ("device", "cores", "threads"), [("cpu", 16, 2), ("cuda", 16, 8), ("cuda:1", 6, 6), ("cuda", 1, 2)]
)
def test_more_threads_read_where_a_gpu_computes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, cores: int, threads: int
) -> None:
    source = Cached(extract.main(**tiny.arguments, cache=tmp_path / "c"), device)
    asked: list[int] = []
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    loader = sources.Loader
    monkeypatch.setattr(sources, "Loader", lambda *of, **how: asked.append(how["threads"]) or loader(*of, **how))
    source.stream(2, views=("orig",), indices=source.finished(["orig"]), seed=0)
    assert asked == [threads]
