"""What is put comes back, for every codec, shard size and reading path."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from cache_toy import LEVELS, make_features, make_truth

from featcache import Cache, CacheError
from featcache.errors import NotDoneError

Maker = Callable[..., Path]


@pytest.mark.parametrize("shard", [1, 2, 8])
@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
def test_entries_equal_what_was_put(make_cache: Maker, codec: str, shard: int) -> None:
    cache = Cache(make_cache(5, codec=codec, shard=shard, views=("orig", "hflip")))
    assert len(cache) == 5
    for view in cache.views:
        assert cache.done(view).all()
        for index in range(5):
            given, entry = make_features(index, view), cache.entry(index, view)
            for name in ("queries", "boxes", "scores", "labels"):
                assert torch.equal(getattr(entry, name), given[name])
            assert entry.labels.dtype == torch.int64
            assert entry.input_hw == given["input_hw"]
            assert (entry.index, entry.view, entry.info) == (index, view, cache.images[index])
            for name, values in given["maps"].items():
                got = entry.maps[name]
                assert got.shape == values.shape
                assert got.permute(1, 2, 0).is_contiguous()
                step = (values.amax((1, 2)) - values.amin((1, 2))) / 128  # the fewest
                bound = {"uint8": step[:, None, None] * 0.501, "fp16": values.abs() * 2**-11, "none": torch.zeros(())}[
                    codec
                ]
                assert ((got - values).abs() <= bound).all()


def test_ground_truth_and_images_come_back(make_cache: Maker) -> None:
    cache = Cache(make_cache(5))
    for index, truth in enumerate(make_truth(5)):
        got = cache.ground_truth(index)
        for name in ("ids", "category_ids", "boxes_xywh", "areas", "iscrowd"):
            np.testing.assert_array_equal(getattr(got, name), getattr(truth, name))
        assert got.rles == truth.rles
    assert cache.images[2].file_name == "bild-2-ä.jpg"
    assert cache.image(103).index == 3


def test_cache_without_any_annotation(make_cache: Maker) -> None:
    cache = Cache(make_cache(1))
    assert len(cache.ground_truth(0)) == 0
    assert cache[0].ground_truth.boxes_xywh.shape == (0, 4)


@pytest.mark.parametrize("shard", [1, 3])
def test_plain_zarr_reads_a_map_by_its_attributes(make_cache: Maker, shard: int) -> None:
    path = make_cache(4, shard=shard)
    group, cache = zarr.open_group(path, mode="r"), Cache(path)
    for position, level in enumerate(LEVELS):
        array = group[f"views/orig/maps/{level.name}"]
        about = array.attrs["featcache"]
        for i in range(4):
            h, w = group["views/orig/level_hw"][i, position]
            tokens = array[i][: h * w].reshape(h, w, level.channels)
            assert not array[i][h * w :].any()
            if about["delta"]:
                tokens = np.cumsum(tokens, axis=0, dtype=np.uint8)
            values = tokens * group[about["scale"]][i] + group[about["offset"]][i]
            np.testing.assert_allclose(values, cache[i].maps[level.name].permute(1, 2, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shard", [1, 2])
def test_direct_path_equals_zarr_python(make_cache: Maker, shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cache(3, shard=shard)
    direct = [Cache(path)[i] for i in range(3)]
    assert all(files.direct for files in Cache(path).files("orig").maps.values())
    monkeypatch.setattr("featcache.store._codec_names", lambda array: ["something", "else"])
    slow = Cache(path)
    assert not any(files.direct for files in slow.files("orig").maps.values())
    for index, entry in enumerate(direct):
        for name, values in entry.maps.items():
            assert torch.equal(values, slow[index].maps[name])
        assert torch.equal(entry.queries, slow[index].queries)


def test_window_is_a_part_of_the_map(make_cache: Maker) -> None:
    cache = Cache(make_cache(2))
    assert torch.equal(cache.window(1, "c1", 2, 5), cache[1].maps["c1"][:, 2:5])
    with pytest.raises(CacheError, match="outside level c1"):
        cache.window(1, "c1", 2, 99)


def test_some_levels_only(make_cache: Maker) -> None:
    assert list(Cache(make_cache(1)).entry(0, levels=["e16"]).maps) == ["e16"]


def test_image_that_is_not_done_is_refused_by_its_id(make_cache: Maker) -> None:
    cache = Cache(make_cache(5, order=[0, 3]))
    np.testing.assert_array_equal(cache.done(), [True, False, False, True, False])
    with pytest.raises(NotDoneError, match="image 102, view orig"):
        cache[2]
    with pytest.raises(CacheError, match="no image 7"):
        cache.image(7)


def test_views_and_levels_that_are_not_there_are_named(make_cache: Maker) -> None:
    cache = Cache(make_cache(1))
    with pytest.raises(CacheError, match="no view 'rot90'"):
        cache.entry(0, "rot90")
    with pytest.raises(CacheError, match="no level 'p3'"):
        cache.window(0, "p3", 0, 1)
