"""Levels stored in bands of rows: the same maps, and windows that read only the bands under them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from cache_toy import LEVELS, arrays_of, make_features, make_spec

from featcache import Cache, CacheError, Entry, LevelSpec, Loader, maintain
from featcache.bands import bands_under, token_runs
from featcache.checks import diff, verify
from featcache.errors import DamagedError
from featcache.source import LocalSource

Maker = Callable[..., Path]

BANDED = (replace(LEVELS[0], band_rows=3), LEVELS[1])
"""C1 of at most 8 x 10 cells in bands of 30: three, of which the last reaches 10 cells beyond the map."""


@pytest.mark.parametrize("shard", [1, 2])
@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
def test_bands_change_no_value(make_cache: Maker, codec: str, shard: int) -> None:
    whole = Cache(make_cache(5, name="whole", codec=codec, shard=shard))
    banded = Cache(make_cache(5, name="banded", codec=codec, shard=shard, levels=BANDED))
    assert verify(banded.path, deep=True).good
    for index in range(5):
        for name, values in whole[index].maps.items():
            assert torch.equal(values, banded[index].maps[name])


@pytest.mark.parametrize("shard", [1, 2])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("levels", [LEVELS, BANDED])
def test_every_window_is_that_part_of_the_map(
    make_cache: Maker, shard: int, direct: bool, levels: tuple[LevelSpec, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(make_cache(3, shard=shard, levels=levels))
    if not direct:
        monkeypatch.setattr("featcache.store._codec_names", lambda array: ["something", "else"])
    assert {files.direct for files in cache.files("orig").maps.values()} == {direct}
    for index in range(3):  # 8, 10 and 6 rows of 10, 8 and 10 cells
        values = cache[index].maps["c1"]
        rows = values.shape[1]
        for y0 in range(rows):
            for y1 in range(y0 + 1, rows + 1):
                assert torch.equal(cache.window(index, "c1", y0, y1), values[:, y0:y1])
        for y0, y1 in ((0, 0), (2, 1), (-1, 2), (0, rows + 1)):
            with pytest.raises(CacheError, match=f"rows {y0}:{y1} are outside level c1 of {rows} rows"):
                cache.window(index, "c1", y0, y1)


@pytest.mark.parametrize("shard", [1, 2])
def test_plain_zarr_reads_bands(make_cache: Maker, shard: int) -> None:
    path = make_cache(3, shard=shard, levels=BANDED)
    array: Any = zarr.open_group(path, mode="r")["views/orig/maps/c1"]
    assert (array.shape, array.chunks) == ((3, 80, 6), (1, 30, 6))
    assert array.attrs["featcache"]["delta"] is False
    for index in range(3):
        np.testing.assert_array_equal(array[index], Cache(path).read_tokens(index, "orig", "c1"))
    assert len(list(path.glob("views/orig/maps/c1/c.*"))) == -(-3 // shard)


def test_a_window_reads_only_its_bands(make_cache: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    read = LocalSource.read

    def counted(source: LocalSource, key: str, start: int = 0, length: int | None = None) -> bytes:
        nonlocal count
        data = read(source, key, start, length)
        count += len(data) if "/maps/c1/" in key else 0
        return data

    def bytes_of(y0: int, y1: int) -> int:
        nonlocal count
        count = 0
        cache.window(0, "c1", y0, y1)
        return count - index

    monkeypatch.setattr(LocalSource, "read", counted)
    cache = Cache(make_cache(1, codec="none", levels=BANDED))  # not compressed: the bytes can be foretold
    index, band = 3 * 16 + 4, 30 * 6 * 4 + 4
    assert [bytes_of(0, 1), bytes_of(0, 3), bytes_of(3, 6), bytes_of(7, 8)] == [band] * 4
    assert [bytes_of(2, 4), bytes_of(5, 8), bytes_of(0, 8)] == [2 * band, 2 * band, 3 * band]


@pytest.mark.parametrize("shard", [1, 2])
def test_continuing_with_bands_gives_equal_arrays(make_cache: Maker, shard: int) -> None:
    whole = make_cache(5, name="whole", shard=shard, levels=BANDED)
    for order in ([3], [0, 2], [4, 1]):
        part = make_cache(5, name="part", shard=shard, levels=BANDED, order=order)
    a, b = arrays_of(whole), arrays_of(part)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_damaged_band_spoils_only_the_windows_over_it(make_cache: Maker) -> None:
    path = make_cache(2, codec="none", levels=BANDED)
    values = Cache(path)[1].maps["c1"]  # 10 rows of 8 cells: the bands end within rows 3 and 7
    file = path / "views/orig/maps/c1/c.1.0.0"
    data = bytearray(file.read_bytes())
    data[(30 * 6 * 4 + 4) + 5] ^= 1
    file.write_bytes(data)
    cache = Cache(path)
    assert torch.equal(cache.window(1, "c1", 0, 3), values[:, :3])
    assert torch.equal(cache.window(1, "c1", 8, 10), values[:, 8:])
    for y0, y1 in ((3, 4), (0, 10), (7, 8)):
        with pytest.raises(DamagedError, match=r"image 101, view orig, level c1 .* checksum does not match"):
            cache.window(1, "c1", y0, y1)
    assert [(item.image_id, item.level) for item in verify(path, deep=True).damage] == [(101, "c1")]


def test_bands_are_part_of_the_identity_of_a_cache_but_not_of_a_head(make_cache: Maker) -> None:
    plain, banded = make_spec(), make_spec(levels=BANDED)
    assert "band_rows" not in plain.to_json()["levels"][0]
    assert type(banded).from_json(banded.to_json()) == banded
    assert banded.fingerprint != plain.fingerprint
    assert banded.source_fingerprint == plain.source_fingerprint
    assert plain.differences(banded) == [("levels.0.band_rows", None, 3)]
    assert Cache(make_cache(1, levels=BANDED)).spec == banded


@pytest.mark.parametrize("rows", [0, -1])
def test_bands_of_no_rows_are_refused(rows: int) -> None:
    with pytest.raises(CacheError, match=r"level 'c1': .* band_rows must be positive"):
        replace(LEVELS[0], band_rows=rows)


def test_bands_larger_than_the_map_are_the_map(make_cache: Maker) -> None:
    cache = Cache(make_cache(1, levels=(replace(LEVELS[0], band_rows=99), LEVELS[1])))
    assert cache.spec.levels[0].bands == 1
    assert cache[0].maps["c1"].shape == make_features(0)["maps"]["c1"].shape


def test_a_copy_keeps_the_bands(make_cache: Maker, tmp_path: Path) -> None:
    source = Cache(make_cache(3, levels=BANDED))
    copied = Cache(maintain.run(maintain.plan_copy(source, tmp_path / "copy", shard=2)))
    assert diff(source, copied).equal
    assert copied.spec.levels[0].bands == 3
    assert verify(copied.path, deep=True).good


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
def test_a_loader_reads_the_rows_that_are_wanted(
    make_cache: Maker, codec: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(make_cache(6, codec=codec, levels=BANDED))
    if not direct:
        monkeypatch.setattr("featcache.store._codec_names", lambda array: ["something", "else"])

    def wanted(entry: Entry) -> dict[str, list[tuple[int, int]]]:
        assert not entry.maps
        assert len(entry.boxes) == len(cache[entry.index].boxes)
        spans = {0: [(0, 1)], 1: [(-5, 1), (9, 99)], 2: [], 3: [(0, 99)], 4: [(5, 5), (50, 60)]}
        return {"c1": spans[entry.index], "e16": [(0, 1)]} if entry.index in spans else {}

    given: dict[int, Entry] = {}
    for batch in Loader(cache, 2, threads=2, depth=1, wanted=wanted):  # buffers are used again
        given |= {entry.index: entry for entry in batch}
    for index, entry in given.items():
        values, c1 = cache[index].maps["c1"], entry.maps["c1"]
        assert torch.equal(entry.maps["e16"], cache[index].maps["e16"])  # not in bands
        assert entry.partial == ({"c1"} if index < 5 else set())
        read = c1.flatten(1).any(0) | (c1 == values).flatten(1).all(0)
        assert torch.equal(c1.flatten(1)[:, read], values.flatten(1)[:, read])
        bands = [(read[start : start + 30]).all().item() for start in range(0, c1[0].numel(), 30)]
        expected = {0: [0], 1: [0, 2], 2: [], 3: [0, 1, 2], 4: [], 5: [0, 1, 2]}[index]
        assert [number for number, whole in enumerate(bands) if whole] == [b for b in expected if b < len(bands)]
        assert entry.moments == cache[index].moments


@pytest.mark.parametrize("shard", [1, 2])
def test_bytes_are_read_of_the_wanted_bands_alone(make_cache: Maker, shard: int) -> None:
    cache = Cache(make_cache(2, codec="none", shard=shard, levels=BANDED))
    cache.done()
    sizes: list[int] = []
    for spans in ([], [(0, 1)], [(0, 1), (7, 8)], [(0, 8)]):
        before = cache.bytes_read
        cache.read(0, "orig", ["c1"], wanted=lambda entry, spans=spans: {"c1": spans})
        sizes.append(cache.bytes_read - before)
    band = 30 * 6 * 4 + 4
    assert [size - sizes[0] for size in sizes] == [0, band, 2 * band, 3 * band]


def test_a_damaged_band_that_nobody_wants_stops_nobody(make_cache: Maker) -> None:
    path = make_cache(1, codec="none", levels=BANDED)
    file = path / "views/orig/maps/c1/c.0.0.0"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    cache = Cache(path)
    cache.read(0, "orig", wanted=lambda entry: {"c1": [(7, 8)]})
    with pytest.raises(DamagedError, match="checksum"):
        cache.read(0, "orig", wanted=lambda entry: {"c1": [(0, 1)]})


def test_band_arithmetic() -> None:
    """Against counting cell by cell."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        h, w, step = (int(rng.integers(1, 12)) for _ in range(3))
        spans = [tuple(sorted(rng.integers(-3, 15, 2).tolist())) for _ in range(rng.integers(0, 4))]
        cells = {y * w + x for y0, y1 in spans for y in range(max(0, y0), min(h, y1)) for x in range(w)}
        bands = bands_under(spans, h, w, step)
        assert bands == sorted({cell // step for cell in cells})
        runs = token_runs(bands, step, h * w)
        assert [cell for run in runs for cell in run] == [cell for cell in range(h * w) if cell // step in bands]
        assert all(one.stop < other.start for one, other in pairwise(runs))


@pytest.mark.gpu
def test_a_gpu_gets_the_rows_that_are_wanted(make_cache: Maker) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cache = Cache(make_cache(5, levels=BANDED))
    options: dict[str, Any] = {"depth": 1, "wanted": lambda entry: {"c1": [(0, 1)]}}
    expected = {entry.index: entry.maps["c1"] for batch in Loader(cache, 2, **options) for entry in batch}
    for batch in Loader(cache, 2, device="cuda", **options):
        for entry in batch:
            assert entry.maps["c1"].is_cuda
            torch.testing.assert_close(entry.maps["c1"].cpu(), expected[entry.index], rtol=1e-6, atol=1e-6)
