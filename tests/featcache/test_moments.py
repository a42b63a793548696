"""Mean and covariance of a level's channels, stored beside it: of what a reader decodes, for every way to store it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from cache_toy import LEVELS, arrays_of, make_features, make_images, make_spec, make_truth

from featcache import Cache, CacheWriter, Loader, Moments, codecs, maintain
from featcache.checks import verify
from featcache.errors import DamagedError
from featcache.moments import multiplies_bytes, products

Maker = Callable[..., Path]

WITH = (replace(LEVELS[0], moments=True), LEVELS[1])
"""C1 with moments, the other level without."""


@pytest.mark.parametrize("shard", [1, 2])
@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
def test_moments_are_those_of_the_decoded_map(make_cache: Maker, codec: str, shard: int) -> None:
    path = make_cache(4, codec=codec, shard=shard, levels=WITH, views=("orig", "hflip"))
    cache = Cache(path)
    assert verify(path, deep=True).good
    for view in cache.views:
        for index in range(4):
            entry = cache.entry(index, view)
            assert set(entry.moments) == {"c1"}
            cells = entry.maps["c1"].flatten(1).double().numpy()
            found = entry.moments["c1"]
            np.testing.assert_allclose(found.mean, cells.mean(1), rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(found.covariance, np.cov(cells, bias=True), rtol=1e-5, atol=1e-6)
            assert torch.equal(found.covariance, found.covariance.T)


def test_a_large_mean_costs_the_covariance_nothing() -> None:
    values = torch.randn(5, 40, 50, generator=torch.Generator().manual_seed(0))
    near, far = Moments.of(values), Moments.of(values.double() + 1e4)
    np.testing.assert_allclose(Moments.of(values + 4096).covariance, near.covariance, atol=2e-3)
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(far.mean, near.mean.double() + 1e4, rtol=1e-10)


@pytest.mark.parametrize("cells", [1, 1023, 1025, 70_000])
def test_products_of_codes_are_exact_however_they_are_computed(cells: int) -> None:
    codes = torch.randint(-128, 128, (cells, 3), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    codes[:, 0] = -128  # the largest sums there are
    true = codes.long().T @ codes.long()
    assert torch.equal(products(codes, as_bytes=False), true)
    if multiplies_bytes():
        assert torch.equal(products(codes, as_bytes=True), true)


def test_moments_of_codes_are_exact_where_the_mean_dwarfs_the_spread() -> None:
    values = (
        torch.randn(5, 40, 50, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0, 1, 2, 3, 4.0])[:, None, None]
    )
    for shift in (0.0, 1e4):
        stored = codecs.encode("uint8", values + shift, *codecs.channel_range(values + shift))
        assert stored.scale is not None
        assert stored.offset is not None
        true = stored.tokens.double() * stored.scale.double() + stored.offset.double()
        found, cells = stored.moments(), true.flatten(0, 1).T.numpy()
        np.testing.assert_allclose(found.mean, cells.mean(1), rtol=1e-7)
        np.testing.assert_allclose(found.covariance, np.cov(cells, bias=True), rtol=1e-6, atol=1e-9)
        assert not found.covariance[0].any()


def test_packed_and_back() -> None:
    values = torch.randn(7, 6, 5, generator=torch.Generator().manual_seed(0))
    found = Moments.of(values)
    assert found.packed().shape == (28,)
    again = Moments.unpacked(found.mean, found.packed())
    torch.testing.assert_close(again.covariance, found.covariance)
    batch = Moments.stack([found, again])
    assert (batch.mean.shape, batch.covariance.shape) == ((2, 7), (2, 7, 7))


def test_without_them_nothing_changes(make_cache: Maker) -> None:
    plain, with_moments = make_cache(3, name="plain"), make_cache(3, name="with", levels=WITH)
    a, b = arrays_of(plain), arrays_of(with_moments)
    extra = {"views/orig/mean/c1", "views/orig/covariance/c1"}
    assert set(b) - set(a) == extra
    assert all(np.array_equal(a[name], b[name]) for name in a if not name.endswith("checksum"))
    assert "moments" not in make_spec().to_json()["levels"][0]
    spec = make_spec(levels=WITH)
    assert type(spec).from_json(spec.to_json()) == spec
    assert spec.fingerprint != make_spec().fingerprint  # the cache holds something else,
    assert spec.source_fingerprint == make_spec().source_fingerprint  # a head may read both
    assert Cache(plain)[0].moments == {}


def test_only_the_levels_read_have_moments_and_batches_bring_them(make_cache: Maker) -> None:
    cache = Cache(make_cache(3, levels=WITH))
    assert cache.entry(0, levels=["e16"]).moments == {}
    for entries in Loader(cache, 2):
        for entry in entries:
            assert torch.equal(entry.moments["c1"].mean, cache[entry.index].moments["c1"].mean)


def test_plain_zarr_reads_them(make_cache: Maker) -> None:
    path = make_cache(2, levels=WITH)
    group: Any = zarr.open_group(path, mode="r")
    triangle = group["views/orig/covariance/c1"][1]
    covariance = np.zeros((6, 6), np.float32)
    covariance[np.triu_indices(6)] = triangle
    covariance.T[np.triu_indices(6)] = triangle
    np.testing.assert_array_equal(covariance, Cache(path)[1].moments["c1"].covariance)


def test_a_damaged_moment_is_found(make_cache: Maker) -> None:
    path = make_cache(2, levels=WITH)
    file = next((path / "views/orig/covariance/c1").glob("c.*"))
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedError, match="image 100, view orig, rows"):
        Cache(path)[0]
    assert [item.image_id for item in verify(path, deep=True).damage] == [100]


@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
def test_copies_keep_them(make_cache: Maker, tmp_path: Path, codec: Any) -> None:
    path, copy = make_cache(3, levels=WITH, codec="none"), tmp_path / "copy"
    maintain.run(maintain.plan_copy(Cache(path), copy, codec=codec))
    for index in range(3):
        entry = Cache(copy)[index]
        cells = entry.maps["c1"].flatten(1).double().numpy()
        np.testing.assert_allclose(entry.moments["c1"].covariance, np.cov(cells, bias=True), rtol=1e-5, atol=1e-6)


def test_continuing_gives_equal_arrays(make_cache: Maker) -> None:
    whole = make_cache(5, name="whole", levels=WITH, shard=2)
    for order in ([3], [0, 2], [4, 1]):
        part = make_cache(5, name="part", levels=WITH, shard=2, order=order)
    a, b = arrays_of(whole), arrays_of(part)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_one_cell_has_no_spread(tmp_path: Path) -> None:
    spec = make_spec(levels=WITH)
    features = make_features(0)
    features["maps"]["c1"] = features["maps"]["c1"][:, :1, :1]
    with CacheWriter(tmp_path / "one", spec, make_images(1), make_truth(1)) as writer:
        writer.put(0, "orig", **features)
    found = Cache(tmp_path / "one")[0].moments["c1"]
    assert not found.covariance.any()


def test_a_cache_begun_without_moments_goes_on_without(make_cache: Maker) -> None:
    begun = make_cache(3, order=[0])
    assert make_cache(3, levels=WITH, order=[1, 2]) == begun
    cache = Cache(begun)
    assert cache.done().all()
    assert cache.fingerprint == make_spec().fingerprint
    assert cache[2].moments == {}
    make_cache(3, name="other", levels=WITH, order=[0])
    with_moments = Cache(make_cache(3, name="other", order=[1, 2]))
    assert set(with_moments[2].moments) == {"c1"}
