"""Every pair once, in an order that a seed fixes and a state continues, with the values of the cache."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pretend_gpu import pretended

from featcache import Cache, CacheError, Loader
from featcache.errors import NotDoneError

Maker = Callable[..., Path]


def pairs_of(loader: Loader) -> list[tuple[int, str]]:
    return [(entry.index, entry.view) for batch in loader for entry in batch]


@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
@pytest.mark.parametrize(("threads", "depth"), [(1, 1), (3, 2)])
def test_one_pass_gives_every_pair_once_with_its_values(
    make_cache: Maker, codec: str, threads: int, depth: int
) -> None:
    cache = Cache(make_cache(7, codec=codec, views=("orig", "hflip")))
    loader = Loader(cache, 4, threads=threads, depth=depth)
    kept = [entry for batch in loader for entry in batch]  # all kept: buffers must not be shared with what was given
    assert sorted((entry.index, entry.view) for entry in kept) == [(i, v) for i in range(7) for v in ("hflip", "orig")]
    for entry in kept:
        for name, values in cache.entry(entry.index, entry.view).maps.items():
            assert torch.equal(entry.maps[name], values)


def test_levels_are_those_named_and_none_may_be(make_cache: Maker) -> None:
    cache = Cache(make_cache(3))
    whole = list(cache.spec.level_names)
    for levels in (None, whole[1:], []):
        names = whole if levels is None else levels
        assert [list(entry.maps) for batch in Loader(cache, 2, levels=levels) for entry in batch] == [names] * 3
        assert list(cache.entry(0, levels=levels).maps) == names
        assert list(cache.entry(0, levels=levels).moments) == [n for n in names if cache.spec.level(n).moments]


def test_batches_and_length(make_cache: Maker) -> None:
    cache = Cache(make_cache(5))
    assert [len(batch) for batch in Loader(cache, 2)] == [2, 2, 1]
    assert len(Loader(cache, 2)) == 3
    assert [len(batch) for batch in Loader(cache, 2, drop_last=True)] == [2, 2]
    assert len(Loader(cache, 2, drop_last=True)) == 2


def test_order_is_fixed_by_seed_and_changes_by_epoch(make_cache: Maker) -> None:
    cache = Cache(make_cache(8))
    first, again, other = Loader(cache, 3, seed=1), Loader(cache, 3, seed=1), Loader(cache, 3, seed=2)
    orders = [pairs_of(loader) for loader in (first, again, other)]
    assert orders[0] == orders[1] != orders[2]
    assert pairs_of(first) != orders[0]
    assert pairs_of(Loader(cache, 3, shuffle=False)) == [(i, "orig") for i in range(8)]


def test_state_continues_where_it_was(make_cache: Maker) -> None:
    cache = Cache(make_cache(7))
    whole = Loader(cache, 2, seed=5)
    expected = [pairs_of(whole), pairs_of(whole)]
    stopped, got = Loader(cache, 2, seed=5), []
    for batch in stopped:
        got += [(entry.index, entry.view) for entry in batch]
        if len(got) == 4:
            break
    resumed = Loader(cache, 2, seed=5)
    resumed.load_state_dict(stopped.state_dict())
    assert got + pairs_of(resumed) == expected[0]
    assert pairs_of(resumed) == expected[1]


def test_state_of_other_images_is_refused(make_cache: Maker) -> None:
    cache = Cache(make_cache(3))
    with pytest.raises(CacheError, match="pairs 3, this loader has 2"):
        Loader(cache, 2, indices=[0, 1]).load_state_dict(Loader(cache, 2).state_dict())


def test_only_done_images_are_given(make_cache: Maker) -> None:
    cache = Cache(make_cache(5, order=[1, 3]))
    assert pairs_of(Loader(cache, 2, shuffle=False)) == [(1, "orig"), (3, "orig")]
    with pytest.raises(NotDoneError, match="image 102"):
        Loader(cache, 2, indices=[1, 2])


def test_chosen_levels_and_indices(make_cache: Maker) -> None:
    cache = Cache(make_cache(5))
    batches = list(Loader(cache, 2, indices=[4, 0], levels=["e16"], shuffle=False))
    assert [entry.index for entry in batches[0]] == [4, 0]
    assert list(batches[0][0].maps) == ["e16"]


@pytest.mark.gpu
def test_gpu_decodes_to_the_same_values(make_cache: Maker) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cache = Cache(make_cache(9))
    for batch in Loader(cache, 2, device="cuda", depth=1):
        for entry in batch:
            assert entry.boxes.is_cuda
            for name, values in cache[entry.index].maps.items():
                torch.testing.assert_close(entry.maps[name].cpu(), values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batches", [1, 3, 9])
def test_buffers_are_kept_until_a_gpu_has_copied_from_them(
    make_cache: Maker, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """After a whole pass and one that is broken off, torch may lend the memory to the next pass at once."""
    cache = Cache(make_cache(5))
    waited: list[str] = []
    with pretended(monkeypatch):
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
        given = iter(Loader(cache, 2, device="cuda", depth=1))
        for _ in range(batches):
            assert not waited
            if next(given, None) is None:
                break
        given.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert waited == ["cuda"]
