"""Ground truth beside the annotations: kept, copied, checked; without any a cache is as it was before there was any."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from cache_toy import make_features, make_images, make_spec, make_truth

from featcache import Cache, CacheError, CacheWriter, GroundTruth, maintain
from featcache.checks import verify
from featcache.errors import MismatchError
from featcache.header import read_header


def test_kept_and_copied(tmp_path: Path) -> None:
    source, segments = Cache(write(tmp_path / "cache")), further(4)
    for index, expected in enumerate(segments):
        assert_same(source.ground_truth(index, "panoptic"), expected)
        assert_same(source.ground_truth(index), make_truth(4)[index])
    copied = Cache(maintain.run(maintain.plan_copy(source, tmp_path / "new", image_ids=[101, 103])))
    assert_same(copied.ground_truth(0, "panoptic"), segments[1])
    assert_same(copied.ground_truth(1, "panoptic"), segments[3])
    assert read_header(copied.path).further_truth() == {"panoptic": sum(len(segments[i]) for i in (1, 3))}
    assert verify(copied.path, deep=True).good


def test_plain_zarr_reads_it(tmp_path: Path) -> None:
    group = zarr.open_group(write(tmp_path / "cache"), mode="r")
    table, expected = group["further_truth/panoptic"], further(4)[1]
    rows = slice(int(table["end"][0]), int(table["end"][1]))
    assert table["category_id"][rows].tolist() == expected.category_ids.tolist()
    ends = [0, *table["rle_end"][...].tolist()]
    text = table["rle_bytes"][...].tobytes()
    assert [text[ends[j] : ends[j + 1]] for j in range(rows.start, rows.stop)] == expected.rles


def test_asked_for_once(tmp_path: Path) -> None:
    path = write(tmp_path / "cache", images=2)
    with CacheWriter(path, spec(), make_images(4), make_truth(4), further_truth={"panoptic": refuse}) as writer:
        assert writer.pending("orig") == [2, 3]


def test_absent_it_changes_nothing(tmp_path: Path) -> None:
    plain = make_spec()
    assert "further_truth" not in plain.to_json()
    assert plain.fingerprint != spec().fingerprint
    with CacheWriter(tmp_path / "plain", plain, make_images(1), make_truth(1)):
        pass
    assert not (tmp_path / "plain" / "further_truth").exists()
    with pytest.raises(CacheError, match="no ground truth 'panoptic'"):
        Cache(tmp_path / "plain").ground_truth(0, "panoptic")
    with pytest.raises(MismatchError, match="further_truth"):
        CacheWriter(tmp_path / "plain", spec(), make_images(1), make_truth(1), further_truth={"panoptic": refuse})


def test_damage_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "cache")
    chunk = path / "further_truth/panoptic/rle_bytes/c.0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    report = verify(path)
    assert not report.good
    assert "ground truth 'panoptic' does not read" in report.problems[0]


def spec():
    return make_spec(further_truth=("panoptic",))


def further(count: int) -> list[GroundTruth]:
    return [
        GroundTruth(
            ids=np.arange(i + 1) + 256**3 - 9,
            category_ids=np.full(i + 1, 200),
            boxes_xywh=np.full((i + 1, 4), float(i)),
            areas=np.arange(i + 1) + 0.5,
            iscrowd=np.arange(i + 1) == 0,
            rles=[b"RLE" * (i + j) for j in range(i + 1)],
        )
        for i in range(count)
    ]


def write(path: Path, images: int = 4) -> Path:
    truths = {"panoptic": lambda: further(4)}
    with CacheWriter(path, spec(), make_images(4), make_truth(4), further_truth=truths) as writer:
        for index in range(images):
            writer.put(index, "orig", **make_features(index))
    return path


def refuse() -> list[GroundTruth]:
    raise AssertionError("a cache that is there keeps what it has")


def assert_same(found: GroundTruth, expected: GroundTruth) -> None:
    for name in ("ids", "category_ids", "boxes_xywh", "areas", "iscrowd"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.rles == expected.rles
