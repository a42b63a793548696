"""What the writer refuses, how it continues, and that one cache has one writer."""

import fcntl
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from cache_toy import arrays_of, make_features, make_images, make_spec, make_truth

from featcache import Cache, CacheError, CacheWriter, LevelSpec
from featcache.errors import BadValueError, FormatVersionError, LockedError, MismatchError, NotACacheError
from featcache.layout import images_per_file

Maker = Callable[..., Path]


def open_writer(path: Path, count: int = 3, **changes: Any) -> CacheWriter:
    return CacheWriter(path, make_spec(**changes), make_images(count), make_truth(count))


@pytest.mark.parametrize("shard", [1, 2, 4])
def test_continuing_gives_equal_arrays(make_cache: Maker, shard: int) -> None:
    whole = make_cache(5, name="whole", shard=shard)
    for order in ([0], [1, 4], [1, 4, 3, 2]):  # the last run puts one image again, which is allowed
        part = make_cache(5, name="part", shard=shard, order=order)
    with CacheWriter(part, make_spec(), make_images(5), make_truth(5)) as writer:
        assert writer.pending("orig") == []
    assert Cache(part).shard == shard
    a, b = arrays_of(whole), arrays_of(part)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_images_in_no_order_fill_their_shards(make_cache: Maker) -> None:
    order = [0, 19, 3, 15, 8, 12, 5, 1, 18, 2, 14, 9, 13, 4, 16, 6, 10, 7, 17, 11]
    cache = Cache(make_cache(20, shard=3, order=order))
    assert cache.done().all()
    for index in order:
        assert torch.equal(cache[index].boxes, make_features(index)["boxes"])
    assert len(list(Path(cache.path).glob("views/orig/maps/c1/c.*"))) == 7


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
def test_values_that_are_not_finite_are_refused_with_their_place(tmp_path: Path, codec: str, bad: float) -> None:
    features = make_features(1)
    features["maps"]["e16"][4, 1, 0] = bad
    with open_writer(tmp_path / "c", codec=codec) as writer:
        with pytest.raises(BadValueError, match=r"image 101, view orig, level e16: .* row 1, column 0, channel 4"):
            writer.put(1, "orig", **features)
        writer.put(0, "orig", **make_features(0))
    assert Cache(tmp_path / "c").done().tolist() == [True, False, False]


def test_values_beyond_float16_are_refused_only_there(tmp_path: Path) -> None:
    features = make_features(0)
    features["maps"]["c1"][2, 3, 4] = 70000.0
    with (
        open_writer(tmp_path / "a", codec="fp16") as writer,
        pytest.raises(BadValueError, match=r"value 70000\.0 at row 3"),
    ):
        writer.put(0, "orig", **features)
    with open_writer(tmp_path / "b", codec="none") as writer:
        writer.put(0, "orig", **features)
    assert Cache(tmp_path / "b")[0].maps["c1"][2, 3, 4] == 70000.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": {"c1": torch.zeros(6, 8, 10)}}, r"maps \['c1'\] given, cache holds \['c1', 'e16'\]"),
        ({"maps": {"c1": torch.zeros(5, 8, 10), "e16": torch.zeros(5, 2, 3)}}, r"level c1: map is \(5, 8, 10\)"),
        ({"maps": {"c1": torch.zeros(6, 9, 10), "e16": torch.zeros(5, 2, 3)}}, "h \\* w up to 80"),
        ({"boxes": torch.zeros(8, 4)}, "8 detections given, cache holds 7"),
        ({"scores": torch.zeros(2)}, r"scores are \(2,\), expected \(7,\)"),
        ({"queries": torch.full((7, 4), torch.nan)}, "queries hold nan at"),
    ],
)
def test_wrong_shapes_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with open_writer(tmp_path / "c") as writer, pytest.raises(BadValueError, match=message):
        writer.put(0, "orig", **{**make_features(0), **change})


def test_unknown_view_or_index_is_refused(tmp_path: Path) -> None:
    with open_writer(tmp_path / "c") as writer:
        for index, view in ((3, "orig"), (-1, "orig"), (0, "hflip")):
            with pytest.raises(BadValueError, match=f"no view '{view}' with index {index}"):
                writer.put(index, view, **make_features(0))


def test_another_fingerprint_is_refused_naming_the_fields(make_cache: Maker) -> None:
    path = make_cache(3)
    with pytest.raises(MismatchError) as caught:
        open_writer(path, codec="fp16", source={"name": "toy", "transform": {"short_side": 64}})
    assert caught.value.fields == [
        ("codec", "uint8", "fp16"),
        ("max_error", 0.006, None),
        ("source.transform.short_side", 32, 64),
    ]
    assert "codec: cache has 'uint8', now 'fp16'" in caught.value.message
    assert "source.transform.short_side: cache has 32, now 64" in caught.value.message


def test_recipe_is_not_part_of_the_fingerprint(make_cache: Maker) -> None:
    path = make_cache(3)
    with open_writer(path, recipe={"command": "another"}) as writer:
        assert writer.pending("orig") == []
    assert Cache(path).spec.recipe == make_spec().recipe


def test_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with open_writer(tmp_path / "c"), pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        open_writer(tmp_path / "c")
    open_writer(tmp_path / "c").close()


def test_a_lock_file_that_nobody_holds_is_no_lock(make_cache: Maker) -> None:
    path = make_cache(1)
    assert (path / "writer/zarr.json").exists()
    with open(path / "writer/zarr.json") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is free


def test_foreign_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    zarr.create_group(tmp_path / "other")
    for name in ("photos", "other"):
        with pytest.raises(NotACacheError, match="is not empty and not a cache"):
            open_writer(tmp_path / name)
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"x"
    assert sorted(entry.name for entry in (tmp_path / "other").iterdir()) == ["zarr.json"]


def test_reading_what_is_no_cache(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "other")
    for name in ("absent", "other"):
        with pytest.raises(NotACacheError):
            Cache(tmp_path / name)


def test_other_format_version_is_refused(make_cache: Maker) -> None:
    path = make_cache(1)
    text = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(text.replace('"format_version": 1', '"format_version": 2'))
    for opening in (lambda: Cache(path), lambda: open_writer(path, 1)):
        with pytest.raises(FormatVersionError, match="version 2, this release reads version 1"):
            opening()


def test_tables_must_fit_each_other(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="2 images and 1 ground truths"):
        CacheWriter(tmp_path / "c", make_spec(), make_images(2), make_truth(1))
    with pytest.raises(CacheError, match="same id"):
        CacheWriter(tmp_path / "c", make_spec(), make_images(1) * 2, make_truth(2))


LARGE = LevelSpec("c1", 4, 256, (200, 304))


@pytest.mark.parametrize(("levels", "views"), [(1, 1), (3, 1), (3, 2), (5, 1), (6, 2)])
def test_coco_stays_below_the_file_limit_without_more_sharing_than_that_takes(levels: int, views: int) -> None:
    names = [f"v{i}" for i in range(views)]
    spec = make_spec(levels=tuple(replace(LARGE, name=f"m{i}") for i in range(levels)), views=tuple(names))
    shard = images_per_file(spec, 118_287)
    assert levels * views * math.ceil(118_287 / shard) < 100_000
    assert shard == 1 or levels * views * math.ceil(118_287 / (shard - 1)) > 90_000
    assert images_per_file(spec, 5_000) == 1


def test_small_maps_share_files_by_themselves(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c", make_spec(), make_images(10), make_truth(10)) as writer:
        for index in range(10):
            writer.put(index, "orig", **make_features(index))
    assert Cache(tmp_path / "c").shard == 8
    assert len(list((tmp_path / "c/views/orig/maps/c1").glob("c.*"))) == 2
    assert Cache(tmp_path / "c").done().all()


def test_the_first_images_decide_together_on_differences(tmp_path: Path) -> None:
    """The first is smaller without, the eight together with; nothing of them is written before, all of them after."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.integers(0, 255, (4, 24, 16)).astype(np.float32))
    rows = torch.from_numpy(rng.integers(0, 9, (4, 24, 16)).cumsum(1).astype(np.float32))
    level = LevelSpec("c1", 4, 4, (24, 16))
    spec = make_spec(codec="uint8", max_error=0.0, levels=(level,), detections=1, query_dim=2, views=("orig",))
    images, truths = make_images(12), make_truth(12)

    def put(writer: CacheWriter, index: int) -> None:
        detection = {"queries": torch.zeros(1, 2), "boxes": torch.full((1, 4), 0.5), "scores": torch.ones(1)}
        values = noise if index == 0 else rows.roll(index, dims=2)
        labels = torch.zeros(1, dtype=torch.int64)
        writer.put(index, "orig", maps={"c1": values}, labels=labels, input_hw=(96, 64), **detection)

    with CacheWriter(tmp_path / "cache", spec, images, truths, shard=1) as writer:
        for index in range(7):
            put(writer, index)
        assert writer.delta("orig", "c1") is None
        assert not writer.done("orig").any()
        for index in range(7, 12):
            put(writer, index)
        assert writer.delta("orig", "c1") is True
    cache = Cache(tmp_path / "cache")
    assert cache.done("orig").all()
    torch.testing.assert_close(cache[0].maps["c1"], noise, atol=0.51, rtol=0)
    torch.testing.assert_close(cache[11].maps["c1"], rows.roll(11, dims=2), atol=0.51, rtol=0)

    with CacheWriter(tmp_path / "one", spec, images[:1], truths[:1], shard=1) as writer:
        put(writer, 0)
    assert Cache(tmp_path / "one").files("orig").maps["c1"].delta is False
