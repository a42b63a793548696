"""What is lost or damaged is told by `verify` and by whoever reads it: never an abort, never zeros in its place."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from cache_toy import json_of, make_images, make_spec, make_truth

from featcache import Cache, CacheError, CacheWriter, GroundTruth, ImageInfo
from featcache.checks import verify
from featcache.errors import DamagedError

FIXTURE = Path(__file__).parents[1] / "fixtures/cache_v1"

Maker = Callable[..., Path]
Run = Callable[..., Any]


def break_reading(monkeypatch: pytest.MonkeyPatch, file: Path, number: int) -> None:
    """The disk fails to give what is in a file."""
    pread = os.pread

    def fails(descriptor: int, *arguments: int) -> bytes:
        if os.path.samestat(os.fstat(descriptor), file.stat()):
            raise OSError(number, os.strerror(number))
        return pread(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", fails)


@pytest.mark.parametrize("shard", [1, 2])
@pytest.mark.parametrize("way", ["EIO", "directory"])
def test_a_file_that_cannot_be_read_is_damage_of_its_images(
    run: Run, make_cache: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str, shard: int
) -> None:
    path = make_cache(4, shard=shard)
    file = path / f"views/orig/maps/e16/c.{2 // shard}.0.0"
    if way == "EIO":
        break_reading(monkeypatch, file, errno.EIO)
    else:
        file.unlink()
        file.mkdir()
    words = f"views/orig/maps/e16/c.{2 // shard}.0.0: {os.strerror(errno.EIO if way == 'EIO' else errno.EISDIR)}"
    ids = [102] if shard == 1 else [102, 103]
    report = verify(path, deep=True)
    assert [(one.image_id, one.view, one.level, one.what) for one in report.damage] == [
        (image_id, "orig", "e16", words) for image_id in ids
    ]
    assert report.checked == 4
    assert verify(path).good == (way == "EIO")
    told = f"error: image 102, view orig, level e16 of cache {path}: {words}\nhint: featcache verify {path} --deep"
    for command in (("stats", path), ("show", path, 102), ("copy", path, tmp_path / "new")):
        assert told in run(*command)[2]


def test_rows_that_cannot_be_read_are_damage(make_cache: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cache(2)
    break_reading(monkeypatch, path / "views/orig/boxes/c.0.0.0", errno.EIO)
    words = "views/orig/boxes/c.0.0.0: Input/output error"
    assert [(one.image_id, one.level, one.what) for one in verify(path, deep=True).damage] == [
        (100, "rows", words),
        (101, "rows", words),
    ]


def test_flags_that_cannot_be_read_are_a_problem(run: Run, make_cache: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cache(2, views=("orig", "hflip"))
    break_reading(monkeypatch, path / "views/hflip/done/c.0", errno.EIO)
    found = verify(path).problems
    assert found == ["done flags of view hflip do not read: views/hflip/done/c.0: Input/output error"]
    assert "error: done flags of view hflip of cache" in run("stats", path, "--view", "hflip")[2]


def test_a_process_out_of_files_takes_nothing_for_damage(make_cache: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cache(2)
    break_reading(monkeypatch, path / "views/orig/maps/e16/c.1.0.0", errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"):
        verify(path, deep=True)


TABLES = [
    *(f"images/{name}" for name in ("id", "height", "width", "name_end", "name_bytes")),
    *(f"ground_truth/{name}" for name in ("end", "id", "category_id", "area", "iscrowd", "rle_end", "rle_bytes")),
    "ground_truth/box_xywh",
]


def chunk_of(table: str) -> str:
    return f"{table}/c.0" + ".0" * table.endswith("box_xywh")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("age", ["new", "old"])
def test_a_missing_file_of_a_table_is_a_problem(run: Run, make_cache: Maker, age: str, table: str) -> None:
    """Of an old cache too, which does not say that it wrote files of zeros, where zeros cannot be."""
    path = make_cache(4)
    (path / chunk_of(table)).unlink()
    if age == "old":
        make_old(path)
    may_be_zeros = age == "old" and table in ("ground_truth/area", "ground_truth/iscrowd")
    for deep in ([], ["--deep"]):
        data = json_of(run("verify", path, *deep, "--json"), code=int(not may_be_zeros))
        if may_be_zeros:
            continue
        if table == "ground_truth/end" and age == "old":
            assert data["problems"] == ["ground truth does not read: end does not fit the 3 that it cuts into parts"]
        else:
            assert data["problems"] == [f"{chunk_of(table)} is missing"]
        again = f"python -m pipeline extract --cache {path}.again"
        assert data["remedy"].endswith(f"from a backup, or make the cache again, under another name:\n  {again}")
        assert data["remedy"] in run("verify", path, *deep)[1]
    if not may_be_zeros and table in ("images/id", "images/height", "ground_truth/category_id", "images/name_end"):
        code, out, err = run("ls", path)
        assert (code, out) == (1, "")
        assert f"{chunk_of(table)} is missing" in err
    if table.startswith("images/") and table != "images/name_bytes":
        with pytest.raises(DamagedError, match="image table"):
            Cache(path)


def make_old(path: Path) -> None:
    """As before tables said of themselves that they have all of their files."""
    for file in (*path.glob("images/*/zarr.json"), *path.glob("ground_truth/*/zarr.json")):
        document = json.loads(file.read_bytes())
        assert document["attributes"] == {"featcache": {"every_chunk": True}}
        file.write_text(json.dumps({**document, "attributes": {}}))


def test_tables_of_zeros_have_their_files_and_are_good(tmp_path: Path) -> None:
    """Image 0, category 0, nothing else but zeros where there can be; in an old cache such files are not there."""
    path, one = tmp_path / "cache", np.zeros(1)
    truth = GroundTruth(one.astype(int), one.astype(int), np.ones((1, 4)), one, one.astype(bool), [b"PPYo0"])
    spec = make_spec(recipe={"categories": [{"id": 0, "name": "thing"}]})
    with CacheWriter(path, spec, [ImageInfo(0, 4, 4, "a")], [truth]):
        pass
    assert verify(path).good
    files = [path / chunk_of(table) for table in TABLES]
    assert all(file.exists() for file in files)
    assert json.loads((path / "images/id/zarr.json").read_bytes())["fill_value"] == 0
    for name in ("images/id", *(f"ground_truth/{name}" for name in ("id", "category_id", "area", "iscrowd"))):
        (path / chunk_of(name)).unlink()
    assert len(verify(path).problems) == 5
    make_old(path)
    assert verify(path).good


def test_the_fixture_has_no_file_of_crowd_flags_and_is_good(tmp_path: Path) -> None:
    path = tmp_path / "v1"
    shutil.copytree(FIXTURE, path)
    assert not list(path.glob("ground_truth/iscrowd/c.*"))
    assert verify(path, deep=True).good
    for table in ("images/id", "ground_truth/category_id"):
        (path / table / "c.0").unlink()
        assert f"{table}/c.0 is missing" in verify(path, deep=True).problems


BROKEN = {
    "no JSON": lambda text: "{",
    "nothing": lambda text: "",
    "no object": lambda text: "null",
    "no array": lambda text: "{}",
    "an unknown type": lambda text: re.sub('"data_type": "\\w+"', '"data_type": "blob"', text),
}


@pytest.mark.parametrize("way", BROKEN)
@pytest.mark.parametrize("array", ["views/hflip/maps/e16", "views/hflip/scores", "ground_truth/area", "images/width"])
def test_what_describes_an_array_is_broken(run: Run, make_cache: Maker, array: str, way: str) -> None:
    path = make_cache(2, views=("orig", "hflip"))
    file = path / array / "zarr.json"
    file.write_text(BROKEN[way](file.read_text()))
    code, out, err = run("verify", path)
    assert (code, err) == (1, "")
    assert f"{array}/zarr.json is damaged: " in out
    for command in (("stats", path, "--view", "hflip"), ("show", path, 100, "--view", "hflip"), ("info", path)):
        assert "unexpected" not in run(*command)[2]


def test_arrays_that_are_gone(run: Run, make_cache: Maker) -> None:
    path = make_cache(2, views=("orig", "hflip"))
    shutil.rmtree(path / "views/hflip/maps/e16")
    assert verify(path).problems == ["array views/hflip/maps/e16 is missing"]
    assert f"error: {path}/views/hflip/maps/e16/zarr.json is missing" in run("info", path)[2]
    shutil.rmtree(path / "views/hflip")
    code, _, err = run("stats", path, "--view", "hflip")
    assert code == 1
    assert f"error: cache {path}: array views/hflip/boxes is missing\nhint: featcache verify {path}" in err
    assert "array views/hflip/done is missing" in verify(path).problems
    assert run("stats", path)[0] == 0  # the other view is there


def test_differences_that_are_not_told_of_are_a_problem(make_cache: Maker) -> None:
    path = make_cache(2)
    file = path / "views/orig/maps/c1/zarr.json"
    document = json.loads(file.read_bytes())
    file.write_text(json.dumps({**document, "attributes": {}}))
    assert verify(path).problems == ["views/orig/maps/c1/zarr.json does not say whether rows are stored as differences"]


@pytest.mark.parametrize("header", ["gone", "empty"])
def test_a_cache_that_lost_its_header_is_not_begun_anew(make_cache: Maker, header: str) -> None:
    path = make_cache(2)
    kept = (path / "zarr.json").read_bytes()
    (path / "zarr.json").unlink()
    if header == "empty":
        zarr.create_group(path)
    files = sorted(path.rglob("c.*"))
    with pytest.raises(CacheError, match=r"holds images, but its zarr\.json says nothing of them"):
        CacheWriter(path, make_spec(), make_images(2), make_truth(2))
    assert sorted(path.rglob("c.*")) == files
    (path / "zarr.json").write_bytes(kept)
    assert verify(path, deep=True).good


def test_a_copy_is_made_again_from_its_source(run: Run, make_cache: Maker, tmp_path: Path) -> None:
    source, copied = make_cache(2), tmp_path / "copied"
    assert run("copy", source, copied)[0] == 0
    (copied / "images/id/c.0").unlink()
    assert f"or copy {source} again, under another name" in verify(copied).remedy
