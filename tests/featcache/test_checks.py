"""`verify` names exactly what is damaged and its repair works; `diff` tells identity, presence and values apart."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_toy import flip_byte, make_features, make_images, make_spec, make_truth

from featcache import Cache, CacheWriter
from featcache.checks import Damage, diff, mark_damaged, repair_command, verify
from featcache.errors import DamagedError, LockedError

Maker = Callable[..., Path]


def extract_again(path: Path) -> list[int]:
    """What the extraction command does: put what is pending. Returns it."""
    cache = Cache(path)
    with CacheWriter(path, cache.spec, make_images(len(cache)), make_truth(len(cache))) as writer:
        pending = writer.pending("orig")
        for index in pending:
            writer.put(index, "orig", **make_features(index))
    return pending


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
def test_a_whole_cache_is_good(make_cache: Maker, codec: str, deep: bool) -> None:
    path = make_cache(5, codec=codec, shard=2, order=[0, 1, 4])
    report = verify(path, deep=deep)
    assert report.good
    assert (report.images, report.done, report.checked) == (5, {"orig": 3}, 3)
    assert repair_command(Cache(path), report, marked=False) is None


@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
@pytest.mark.parametrize("place", [0, 9, -1])
def test_one_flipped_byte_names_its_image_and_level(make_cache: Maker, codec: str, place: int) -> None:
    path = make_cache(5, codec=codec)
    flip_byte(path / "views/orig/maps/e16/c.3.0.0", place)
    assert verify(path).good  # a quick check reads no map
    report = verify(path, deep=True)
    assert report.damage == [Damage(103, "orig", "e16", "checksum does not match")]
    with pytest.raises(DamagedError, match="image 103, view orig, level e16"):
        Cache(path)[3]
    assert Cache(path).entry(3, levels=["c1"]).index == 3


def test_every_flipped_byte_of_a_shard_is_found(make_cache: Maker) -> None:
    path = make_cache(3, shard=3)
    file = path / "views/orig/maps/e16/c.0.0.0"
    whole = file.read_bytes()
    for place in range(0, len(whole), 5):
        flip_byte(file, place)
        assert not verify(path, deep=True).good, f"byte {place} of {len(whole)}"
        file.write_bytes(whole)
    assert verify(path, deep=True).good


def test_flipped_byte_in_a_row_is_found(make_cache: Maker) -> None:
    path = make_cache(3)
    for name in ("boxes/c.0.0.0", "queries/c.0.0.0", "scale/c1/c.0.0", "level_hw/c.0.0.0", "labels/c.0.0"):
        file = path / "views/orig" / name
        whole = file.read_bytes()
        flip_byte(file, len(whole) // 2)  # in the row of image 1 of 3
        assert verify(path, deep=True).damage == [Damage(101, "orig", "rows", "checksum does not match")], name
        with pytest.raises(DamagedError, match="image 101, view orig, rows"):
            Cache(path)[1]
        file.write_bytes(whole)


def test_missing_file_is_found_without_deep(make_cache: Maker) -> None:
    path = make_cache(3)
    (path / "views/orig/maps/c1/c.1.0.0").unlink()
    for deep in (False, True):
        report = verify(path, deep=deep)
        assert [(item.image_id, item.level) for item in report.damage] == [(101, "c1")]


@pytest.mark.parametrize("shard", [1, 3])
def test_repair_does_just_the_damaged_images_again(make_cache: Maker, shard: int) -> None:
    path = make_cache(7, shard=shard)
    whole = Cache(make_cache(7, name="whole", shard=shard))
    flip_byte(path / "views/orig/maps/c1/c.1.0.0", 3)  # the first chunk of that file
    damaged = 1 if shard == 1 else 3
    report = verify(path, deep=True)
    assert report.damaged_images == [100 + damaged]
    command = repair_command(Cache(path), report, marked=False)
    again = f"python -m pipeline extract --cache {path}"
    assert command == f"featcache verify {path} --deep --images {100 + damaged} --repair && {again}"
    assert mark_damaged(path, report.damage) == 1
    assert extract_again(path) == [damaged]
    assert verify(path, deep=True).good
    assert diff(Cache(path), whole).equal


def test_repair_of_a_torn_shard_does_all_its_images(make_cache: Maker) -> None:
    path = make_cache(5, shard=3)
    file = path / "views/orig/maps/c1/c.0.0.0"
    file.write_bytes(file.read_bytes()[:-7])
    report = verify(path, deep=True)
    assert report.damaged_images == [100, 101, 102]
    mark_damaged(path, report.damage)
    assert extract_again(path) == [0, 1, 2]
    assert verify(path, deep=True).good


def test_repair_is_refused_while_someone_writes(make_cache: Maker) -> None:
    path = make_cache(2)
    with CacheWriter(path, make_spec(), make_images(2), make_truth(2)), pytest.raises(LockedError):
        mark_damaged(path, [Damage(100, "orig", "c1", "")])
    assert Cache(path).done().all()


def test_only_the_images_asked_for_are_checked(make_cache: Maker) -> None:
    path = make_cache(4)
    flip_byte(path / "views/orig/maps/c1/c.2.0.0", 0)
    assert verify(path, deep=True, image_ids=[100, 103]).checked == 2
    assert verify(path, deep=True, image_ids=[100, 103]).good
    assert verify(path, deep=True, image_ids=[102]).damaged_images == [102]


def test_problems_of_the_whole_cache(make_cache: Maker) -> None:
    path = make_cache(2)
    shutil.rmtree(path / "views/orig/scores")
    assert verify(path).problems == ["array views/orig/scores is missing"]
    path = make_cache(2, name="b")
    text = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(text.replace('"codec": "uint8"', '"codec": "none"'))
    assert any("uint8" in problem for problem in verify(path).problems)
    assert any("fingerprint" in problem for problem in verify(path).problems)
    path = make_cache(2, name="c")
    flip_byte(path / "ground_truth/rle_bytes/c.0", 0)
    assert verify(path).problems[0].startswith("ground truth does not read")
    path = make_cache(2, name="d")
    flip_byte(path / "images/name_bytes/c.0", 0)
    with pytest.raises(DamagedError, match="image table"):
        Cache(path)


def test_diff_of_equal_caches(make_cache: Maker) -> None:
    a, b = (Cache(make_cache(4, name=name, shard=shard)) for name, shard in (("a", 1), ("b", 2)))
    report = diff(a, b)
    assert report.equal
    assert report.compared == 4


def test_diff_names_identity_presence_and_values(make_cache: Maker, tmp_path: Path) -> None:
    a = make_cache(3, name="a", codec="none")
    b = make_cache(3, name="b", codec="none", order=[0, 2], source={"name": "other"})
    with CacheWriter(b, Cache(b).spec, make_images(3), make_truth(3)) as writer:
        features = make_features(0)
        features["maps"]["e16"] = features["maps"]["e16"] + 0.5
        features["scores"] = features["scores"][:-1]
        for name in ("boxes", "labels", "queries"):
            features[name] = features[name][:-1]
        writer.put(0, "orig", **features)
    report = diff(Cache(a), Cache(b))
    assert report.identity == [("source.name", "toy", "other"), ("source.transform.short_side", 32, None)]
    assert (report.only_in_a, report.only_in_b, report.compared) == ([(101, "orig")], [], 2)
    found = {item.part: item.max_abs for item in report.values if item.image_id == 100}
    assert found.pop("e16") == pytest.approx(0.5, abs=1e-6)
    assert found == dict.fromkeys(("queries", "boxes", "scores", "labels"), np.inf)
    assert not any(item.image_id == 102 for item in report.values)
    assert not [item for item in diff(Cache(a), Cache(b), atol=0.6).values if item.part == "e16"]


def test_diff_of_codecs_is_within_the_step(make_cache: Maker) -> None:
    exact, small = Cache(make_cache(3, name="a", codec="none")), Cache(make_cache(3, name="b"))
    step = max(float(values.max() - values.min()) for i in range(3) for values in exact[i].maps.values()) / 128
    assert {item.part for item in diff(exact, small).values} == {"c1", "e16"}
    assert diff(exact, small, atol=step * 0.51).values == []
    assert torch.equal(exact[0].queries, small[0].queries)
