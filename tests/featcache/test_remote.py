"""Reading from an fsspec URL: what an object store answers, and what it answers when something is wrong."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from cache_toy import make_images, make_spec, make_truth
from fsspec.implementations.memory import MemoryFileSystem

from featcache import Cache, CacheError, CacheWriter, Loader, maintain
from featcache.checks import Damage, mark_damaged, verify
from featcache.errors import DamagedError, NotACacheError
from featcache.sizes import estimate

Maker = Callable[..., Path]


class StrictStore(MemoryFileSystem):
    """Memory that answers as s3fs does: any range that starts behind the end of an object is an error."""

    protocol = "strict"
    refusal: ClassVar[Exception | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("strict:/"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if StrictStore.refusal is not None:
            raise StrictStore.refusal
        data = super().cat_file(path, **options)
        if (start is not None or end is not None) and (start or 0) >= len(data):
            raise OSError(errno.EINVAL, "The requested range is not satisfiable")
        return data[start:end]


@pytest.fixture
def remote(make_cache: Maker) -> Iterator[tuple[str, Path, StrictStore]]:
    """(URL, the same cache here, the store); two images in a file."""
    fsspec.register_implementation("strict", StrictStore, clobber=True)
    path = make_cache(3, shard=2)
    store = fsspec.filesystem("strict")
    store.put(str(path), "/bucket/cache", recursive=True)
    yield "strict://bucket/cache", path, store
    StrictStore.refusal = None
    store.rm("/bucket", recursive=True)


def test_a_url_reads_the_same(remote: tuple[str, Path, StrictStore]) -> None:
    url, path, _ = remote
    there, here = Cache(url), Cache(path)
    assert there.done().all()
    assert verify(url, deep=True).good
    for index, entry in enumerate(Loader(there, 1, shuffle=False)):
        for name, values in here[index].maps.items():
            assert torch.equal(values, there[index].maps[name])
            assert torch.equal(values, entry[0].maps[name])
        assert torch.equal(here[index].queries, there[index].queries)


@pytest.mark.parametrize("damage", ["empty", "cut", "absent", "changed"])
def test_a_damaged_object_is_named(remote: tuple[str, Path, StrictStore], damage: str) -> None:
    url, _, store = remote
    key = "/bucket/cache/views/orig/maps/c1/c.0.0.0"
    data = store.cat_file(key)
    store.rm_file(key)
    if damage != "absent":
        flipped = data[:9] + bytes([data[9] ^ 1]) + data[10:]
        store.pipe_file(key, {"empty": b"", "cut": data[:-1], "changed": flipped}[damage])
    with pytest.raises(DamagedError, match="image 100, view orig, level c1 of cache strict://bucket/cache"):
        Cache(url)[0]
    found = verify(url, deep=True).damage
    assert {(item.image_id, item.level) for item in found} >= {(100, "c1")}
    assert {item.image_id for item in found} <= {100, 101}


def test_an_empty_row_file_is_damage(remote: tuple[str, Path, StrictStore]) -> None:
    url, _, store = remote
    store.pipe_file("/bucket/cache/views/orig/scores/c.0.0", b"")
    with pytest.raises(DamagedError, match="image 100, view orig, rows"):
        Cache(url)[0]


@pytest.mark.parametrize("refusal", [PermissionError("Forbidden"), RuntimeError("Could not connect to the endpoint")])
def test_a_store_that_refuses_is_one_clear_sentence(remote: tuple[str, Path, StrictStore], refusal: Exception) -> None:
    cache = Cache(remote[0])
    StrictStore.refusal = refusal
    for opening in (lambda: cache[0], lambda: Cache(remote[0])):
        with pytest.raises(CacheError, match=rf"bucket/cache/.* cannot be read: {refusal}\ncheck the address"):
            opening()


def test_a_url_is_not_written(
    remote: tuple[str, Path, StrictStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = Cache(remote[0])
    damage = Damage(100, "orig", "c1", "changed")
    for target in ("strict://bucket/new", Path("strict://bucket/new")):
        for writing in (
            lambda target=target: CacheWriter(target, make_spec(), make_images(1), make_truth(1)),
            lambda target=target: maintain.run(maintain.plan_copy(cache, Path(target))),
            lambda target=target: mark_damaged(Path(target), [damage]),
            lambda: estimate(cache, 100, at=tmp_path, probe=False),
        ):
            with pytest.raises(CacheError, match="is a URL: a cache is read from there, but not written"):
                writing()
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_places_that_are_no_cache(remote: tuple[str, Path, StrictStore]) -> None:
    with pytest.raises(NotACacheError, match="no cache at strict://bucket/other"):
        Cache("strict://bucket/other")
    with pytest.raises(CacheError, match="nosuch://bucket cannot be opened: Protocol not known"):
        Cache("nosuch://bucket")
    assert not os.path.exists("nosuch:")
