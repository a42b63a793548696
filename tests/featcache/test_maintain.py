"""`copy` and `merge` keep every value, lose nothing when they die, and say beforehand what they will do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from featcache import Cache, CacheError, maintain
from featcache.checks import diff, verify
from featcache.errors import MismatchError

Maker = Callable[..., Path]


@pytest.mark.parametrize("codec", ["uint8", "fp16", "none"])
def test_copy_keeps_the_stored_values(make_cache: Maker, tmp_path: Path, codec: str) -> None:
    source = Cache(make_cache(5, codec=codec, views=("orig", "hflip")))
    copied = Cache(maintain.run(maintain.plan_copy(source, tmp_path / "new", shard=2)))
    assert diff(source, copied).equal
    assert (copied.shard, source.shard) == (2, 1)
    assert verify(copied.path, deep=True).good


def test_copy_of_a_part(make_cache: Maker, tmp_path: Path) -> None:
    source = Cache(make_cache(6, order=[0, 2, 3, 4], views=("orig", "hflip")))
    plan = maintain.plan_copy(source, tmp_path / "new", image_ids=[104, 101, 102], levels=["e16"], views=["hflip"])
    assert plan.summary()["done"] == {"hflip": 2}
    assert not (tmp_path / "new").exists()
    copied = Cache(maintain.run(plan))
    assert [image.id for image in copied.images] == [101, 102, 104]
    assert copied.done().tolist() == [False, True, True]
    assert torch.equal(copied.image(104).maps["e16"], source.image(104, "hflip").maps["e16"])
    assert copied.image(104).ground_truth.rles == source.image(104, "hflip").ground_truth.rles
    assert copied.spec.dataset["subset_images"] == 3
    assert copied.fingerprint != source.fingerprint
    assert verify(copied.path, deep=True).good


def test_copy_to_another_codec(make_cache: Maker, tmp_path: Path) -> None:
    source = Cache(make_cache(3, codec="none"))
    copied = Cache(maintain.run(maintain.plan_copy(source, tmp_path / "new", codec="uint8", max_error=0.006)))
    direct = Cache(make_cache(3, name="direct", codec="uint8"))
    assert diff(copied, direct).equal


def test_copy_does_not_overwrite(make_cache: Maker) -> None:
    source = make_cache(2)
    with pytest.raises(CacheError, match="exists already"):
        maintain.run(maintain.plan_copy(Cache(source), source))


def test_a_killed_copy_continues(make_cache: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Cache(make_cache(5))
    put, calls = maintain._put, []

    def dies_at_the_third(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        put(*arguments)

    monkeypatch.setattr(maintain, "_put", dies_at_the_third)
    plan = maintain.plan_copy(source, tmp_path / "new")
    with pytest.raises(KeyboardInterrupt):
        maintain.run(plan)
    assert not (tmp_path / "new").exists()
    assert diff(source, Cache(maintain.run(plan))).equal
    assert len(calls) == 3 + 3


def test_merge_joins_parts(make_cache: Maker, tmp_path: Path) -> None:
    whole = Cache(make_cache(6, name="whole"))
    parts = [Cache(make_cache(6, name=f"part{n}", order=order)) for n, order in enumerate(([0, 1], [2, 3, 1], [5, 4]))]
    merged = Cache(maintain.run(maintain.plan_merge(parts, tmp_path / "merged")))
    assert diff(whole, merged).equal


def test_a_merged_cache_has_the_command_of_all_parts(make_cache: Maker, tmp_path: Path) -> None:
    """`verify` prints it as what repairs the cache: it must fill this one, and not one part alone."""
    extract = "python -m pipeline extract --images 'a b' --cache {} --codec uint8"
    parts = [
        Cache(make_cache(4, name=f"p{n}", order=order, recipe={"command": extract.format(f"p{n}") + f" --shard {n}/2"}))
        for n, order in ((1, [0, 1]), (2, [2, 3]))
    ]
    merged = Cache(maintain.run(maintain.plan_merge(parts, tmp_path / "all")))
    assert merged.spec.recipe["command"] == extract.format(tmp_path / "all")


def test_merge_of_parts_with_other_deltas(make_cache: Maker, tmp_path: Path) -> None:
    whole = Cache(make_cache(4, name="whole"))
    parts = [Cache(make_cache(4, name=f"part{n}", order=order)) for n, order in enumerate(([0, 1], [2, 3]))]
    flipped = {name: not files.delta for name, files in parts[1].files("orig").maps.items()}
    turned = tmp_path / "turned"
    plan = maintain.plan_copy(parts[1], turned)
    from featcache.writer import CacheWriter

    with CacheWriter(turned, plan.spec, parts[1].images, [parts[1].ground_truth(i) for i in range(4)]) as writer:
        for name, delta in flipped.items():
            writer.set_delta("orig", name, delta)
        for pair in plan.pairs:
            maintain._put(writer, pair, parts[1].read(pair.source_index, "orig"))
    other = Cache(turned)
    assert {name: files.delta for name, files in other.files("orig").maps.items()} == flipped
    assert diff(parts[1], other).equal
    assert diff(whole, Cache(maintain.run(maintain.plan_merge([parts[0], other], tmp_path / "m")))).equal


def test_merge_refuses_other_extractions(make_cache: Maker, tmp_path: Path) -> None:
    a, b = Cache(make_cache(2, name="a")), Cache(make_cache(2, name="b", source={"name": "other"}))
    with pytest.raises(MismatchError, match=r"source\.name: 'toy' and 'other'"):
        maintain.plan_merge([a, b], tmp_path / "m")
