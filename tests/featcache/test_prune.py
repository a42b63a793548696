"""`prune` drops what it is told to, loses nothing when it dies, and touches nothing that it did not make."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_toy import arrays_of, json_of, make_images, make_spec, make_truth

from featcache import Cache, CacheError, CacheWriter, maintain
from featcache.checks import diff, verify
from featcache.errors import LockedError, NotACacheError
from featcache.lock import WriterLock
from featcache.prune import prune

Maker = Callable[..., Path]
Run = Callable[..., Any]


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every directory, but what a process holds of it."""
    found = sorted(path for path in folder.rglob("*") if path.parent.name != "writer")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def test_prune_drops_levels_and_unfinished_images(make_cache: Maker) -> None:
    path = make_cache(5, order=[1, 3, 4])
    before = {i: Cache(path).image(100 + i) for i in (1, 3, 4)}
    prune(path, levels=["e16"], unfinished=True)
    after = Cache(path)
    assert [image.id for image in after.images] == [101, 103, 104]
    for i, entry in before.items():
        assert list(after.image(100 + i).maps) == ["e16"]
        assert torch.equal(after.image(100 + i).maps["e16"], entry.maps["e16"])
    assert [entry.name for entry in path.parent.iterdir()] == ["cache"]


class Killed(BaseException):
    """In place of a signal."""


def killed_prune(path: Path, monkeypatch: pytest.MonkeyPatch, *, before: str, **options: Any) -> None:
    """`prune` that dies just before it renames what is called `before`, and cleans up nothing."""
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.name == before:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dies)
        with pytest.raises(Killed):
            prune(path, **{"levels": ["e16"], **options})


@pytest.mark.parametrize("before", ["new.partial", "cache", "new", "old"])
def test_a_killed_prune_loses_nothing_and_the_same_again_ends_it(
    make_cache: Maker, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    path = make_cache(4)
    whole = Cache(make_cache(4, name="whole"))
    killed_prune(path, monkeypatch, before=before)
    place = {"new": path.parent / "cache.prune/old"}.get(before, path)
    assert diff(Cache(place), whole).equal or before == "old"
    prune(path, levels=["e16"])
    assert list(Cache(path)[0].maps) == ["e16"]
    assert verify(path, deep=True).good
    assert torch.equal(Cache(path)[3].maps["e16"], whole[3].maps["e16"])
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["cache", "whole"]


def test_a_killed_prune_goes_on_only_as_the_same(make_cache: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cache(4)
    killed_prune(path, monkeypatch, before="new.partial")
    prune(path, levels=["c1"])
    assert list(Cache(path)[0].maps) == ["c1"]


@pytest.mark.parametrize("name", ["cache.old", "cache.pruned", "cache.pruned.partial"])
def test_neighbours_are_left_alone(run: Run, make_cache: Maker, name: str) -> None:
    path, neighbour = make_cache(2), make_cache(3, name=name)
    before = everything(neighbour)
    assert run("prune", path, "--levels", "e16", "--dry-run")[0] == 0
    assert run("prune", path, "--levels", "e16", "--yes")[0] == 0
    assert everything(neighbour) == before
    assert list(Cache(path)[0].maps) == ["e16"]


def test_what_is_in_the_way_and_not_ours_is_named_and_left(run: Run, make_cache: Maker) -> None:
    path, foreign = make_cache(2), make_cache(2, name="cache.prune")
    before = everything(path.parent)
    for words in (["--dry-run"], ["--yes"]):
        code, _, err = run("prune", path, "--levels", "e16", *words)
        assert code == 1
        assert f"error: {foreign} is in the way" in err
    assert everything(path.parent) == before


@pytest.mark.parametrize("before", [None, "new.partial", "cache", "new", "old"])
def test_nothing_changes_before_the_answer(
    run: Run, make_cache: Maker, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """Neither with --dry-run nor by a question answered with no, whatever a killed prune has left."""
    path = make_cache(3)
    if before is not None:
        killed_prune(path, monkeypatch, before=before)
    found = everything(path.parent)
    assert json_of(run("prune", path, "--levels", "e16", "--dry-run", "--json"))["images"] == 3
    assert everything(path.parent) == found
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, _, err = run("prune", path, "--levels", "e16")
    assert code == 1
    assert f"Replace {path} by a cache of 3 images?" in err
    assert everything(path.parent) == found


def test_a_cache_between_its_two_names_is_told_of_by_all(
    run: Run, make_cache: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = make_cache(3), make_cache(3, name="other")
    before = arrays_of(path)
    killed_prune(path, monkeypatch, before="new")
    old = path.parent / "cache.prune/old"
    link = path.parent / "link"
    link.symlink_to("cache")
    message = f"prune replaces it, or was stopped when it did; the cache is whole, at {old}"
    for place in (path, link):
        for words in (("info", place), ("ls", place), ("verify", place), ("stats", place), ("copy", place, "new")):
            code, _, err = run(*words)
            assert code == 1
            assert f"error: no cache at {place} now: {message}" in err
            assert f"run the same featcache prune again, or rename it back:  mv {old} {path}" in err
    with pytest.raises(NotACacheError, match="was stopped when it did"):
        CacheWriter(path, make_spec(), make_images(3), make_truth(3))
    with pytest.raises(NotACacheError, match="was stopped when it did"):
        maintain.run(maintain.plan_copy(Cache(other), path))
    assert not path.exists()
    old.rename(path)
    after = arrays_of(path)
    assert all((before[name] == after[name]).all() for name in before)
    prune(path, levels=["e16"])
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["cache", "link", "other"]


def test_two_caches_of_one_name_are_both_kept(make_cache: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = make_cache(3), make_cache(2, name="other")
    killed_prune(path, monkeypatch, before="new")
    shutil.copytree(other, path)
    before = everything(path.parent)
    with pytest.raises(CacheError, match=r"cache\.prune/old, and .*cache is something else now"):
        prune(path, levels=["e16"])
    assert everything(path.parent) == before


@pytest.mark.parametrize("place", ["link", "."])
def test_a_link_or_the_directory_itself_is_pruned(
    run: Run, make_cache: Maker, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = make_cache(3)
    (path.parent / "link").symlink_to("cache")
    monkeypatch.chdir(path if place == "." else path.parent)
    assert run("prune", place, "--levels", "e16", "--yes")[0] == 0
    monkeypatch.chdir(path.parent)
    assert os.readlink("link") == "cache"
    assert list(Cache("link")[0].maps) == ["e16"]
    assert sorted(os.listdir()) == ["cache", "link"]


def test_a_cache_that_is_written_or_pruned_is_refused(make_cache: Maker) -> None:
    path = make_cache(2)
    writer = WriterLock(path)
    with pytest.raises(LockedError):
        prune(path, levels=["e16"])
    writer.release()
    assert [entry.name for entry in path.parent.iterdir()] == ["cache"]
    work = path.parent / "cache.prune"
    work.mkdir()
    marker = WriterLock(work, "pruning")
    with pytest.raises(LockedError):
        prune(path, levels=["e16"])
    assert (work / "pruning/zarr.json").exists()
    marker.release()
    prune(path, levels=["e16"])


def test_a_url_is_not_pruned(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("prune", "memory://x", "--levels", "e16", "--yes")
    assert code == 1
    assert "is a URL: a cache is read from there, but not written" in err
    assert os.listdir() == []
