"""A done flag is written after its data are on the disk, in that order; and a slow disk makes `put` wait."""

import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cache_toy import make_features, make_images, make_spec, make_truth

from featcache import Cache, CacheWriter, commit, files, rows, writer
from featcache.checks import verify
from featcache.commit import Committer
from featcache.record import Record


@dataclass(frozen=True)
class Call:
    """One call that changes a file, or has it put on the disk; `size` is that of the file, or of what is written."""

    name: str
    path: Path
    size: int
    offset: int = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every fsync, pwrite and replace from now on, in order."""
    found: list[Call] = []
    fsync, pwrite, replace = os.fsync, os.pwrite, os.replace

    def path_of(descriptor: int) -> Path:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        found.append(Call("fsync", path_of(descriptor), os.fstat(descriptor).st_size))

    def recorded_pwrite(descriptor: int, data: bytes, offset: int) -> int:
        found.append(Call("pwrite", path_of(descriptor), len(data), offset))
        return pwrite(descriptor, data, offset)

    def recorded_replace(source: Any, target: Any) -> None:
        found.append(Call("replace", Path(target), os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "pwrite", recorded_pwrite)
    monkeypatch.setattr(os, "replace", recorded_replace)
    return found


def write(path: Path, count: int, shard: int, calls: list[Call]) -> list[Call]:
    """Extract in one thread, so that calls of one commit follow each other; the calls of all commits."""
    spec = make_spec(views=("orig", "hflip"))
    with CacheWriter(path, spec, make_images(count), make_truth(count), shard=shard, threads=1, flush_bytes=1) as cache:
        calls.clear()  # those of the creation
        for view in spec.views:
            for index in range(count):
                cache.put(index, view, **make_features(index, view))
    return calls


def broken_promises(path: Path, calls: list[Call]) -> list[str]:
    """For every flag that was set, what of its image was not on the disk by then; and flags that never were."""
    cache, found = Cache(path), list[str]()
    for view in cache.views:
        arrays = cache.files(view)
        for now, flag in enumerate(calls):
            if flag.name != "pwrite" or flag.path != path / arrays.done.key(0):
                continue
            earlier = calls[:now]
            if not any(call.name == "fsync" and call.path == flag.path for call in calls[now:]):
                found.append(f"flag {view} {flag.offset} is never flushed")
            for index in range(flag.offset, flag.offset + flag.size):
                for maps in arrays.maps.values():
                    found += map_promises(path / maps.key(index // cache.shard), earlier)
                for row in (*arrays.rows.values(), arrays.checksum):
                    key, offset = row.place(index)
                    found += row_promises(path / key, offset, row.row_bytes, earlier)
    return found


def map_promises(file: Path, calls: list[Call]) -> list[str]:
    """Written whole under another name, flushed, renamed, the name flushed."""
    replaced = [place for place, call in enumerate(calls) if call.name == "replace" and call.path == file]
    if not replaced:
        return [f"{file} is not there"]
    temporary, last = file.with_name(file.name + files.TEMPORARY_SUFFIX), replaced[-1]
    flushed = [call.size for call in calls[:last] if call.name == "fsync" and call.path == temporary]
    found = [] if len(flushed) == len(replaced) and flushed[-1] == calls[last].size else [f"{file} is not flushed"]
    named = any(call.name == "fsync" and call.path == file.parent for call in calls[last:])
    return found if named else [*found, f"the name of {file} is not flushed"]


def row_promises(file: Path, offset: int, size: int, calls: list[Call]) -> list[str]:
    """Written in place and flushed, the name too where the file was new."""
    written = [place for place, call in enumerate(calls) if call.name == "pwrite" and call.path == file]
    mine = [n for n in written if calls[n].offset <= offset and offset + size <= calls[n].offset + calls[n].size]
    if not mine:
        return [f"row at {offset} of {file} is not there"]
    flushed = any(call.name == "fsync" and call.path == file for call in calls[mine[-1] :])
    named = any(call.name == "fsync" and call.path == file.parent for call in calls[written[0] :])
    return ([] if flushed else [f"{file} is not flushed"]) + ([] if named else [f"the name of {file} is not flushed"])


@pytest.mark.parametrize("shard", [1, 3])
def test_data_and_checksums_are_on_the_disk_before_the_flag(tmp_path: Path, calls: list[Call], shard: int) -> None:
    path, count = tmp_path / "cache", 12
    write(path, count, shard, calls)
    flags = [call for call in calls if call.name == "pwrite" and call.path.parent.name == "done"]
    assert sum(call.size for call in flags) == 2 * count
    assert len(flags) >= 4  # commits one after the other, and not all at the end
    assert broken_promises(path, calls) == []
    assert verify(path, deep=True).good


BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "map files are not flushed": lambda patch: patch.setattr(files, "sync", lambda paths: list(paths)),
    "rows are not flushed": lambda patch: patch.setattr(rows, "sync", lambda paths: list(paths)),
    "flags come first": lambda patch: patch.setattr(commit, "write_rows", backwards(patch)),
    "maps come last": lambda patch: patch.setattr(commit, "replace_files", lambda files: list(files)),
}


def backwards(patch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The first rows of a commit, which are data, are written after the second, which are flags."""
    write_rows, held = rows.write_rows, list[Any]()

    def swapped(root: Path, parts: Any) -> None:
        held.append(list(parts))
        if len(held) == 2:
            for part in reversed(held):
                write_rows(root, part)
            held.clear()

    return swapped


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_promise_would_be_found(
    tmp_path: Path, calls: list[Call], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The test above is one that can fail."""
    BROKEN[way](monkeypatch)
    write(tmp_path / "cache", 4, 1, calls)
    assert broken_promises(tmp_path / "cache", calls)


def test_put_waits_for_a_slow_disk_and_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the queue, what each thread has taken out of it, and the one in hand."""
    count, threads, queue = 60, 2, 8
    most = queue + threads * (queue // threads) + 1
    go_on, held, started, alive, peak = threading.Event(), list[int](), list[int](), list[Any](), list[int]()
    real = Committer.commit

    class Counted(Record):
        def __init__(self, *values: Any) -> None:
            super().__init__(*values)
            alive.append(weakref.ref(self))
            peak.append(sum(one() is not None for one in alive))

    def slow(self: Committer, groups: Any) -> None:
        held.append(1)
        assert go_on.wait(120)
        real(self, groups)

    monkeypatch.setattr(writer, "Record", Counted)
    monkeypatch.setattr(Committer, "commit", slow)
    tables = make_spec(codec="none"), make_images(count), make_truth(count)
    with CacheWriter(tmp_path / "c", *tables, shard=1, threads=threads, queue=queue, flush_bytes=1) as cache:

        def extract() -> None:
            for index in range(count):
                started.append(index)
                cache.put(index, "orig", **make_features(index))

        producer = threading.Thread(target=extract)
        producer.start()
        deadline = time.monotonic() + 120
        while producer.is_alive() and not (len(held) == threads and len(started) > queue + threads):
            assert time.monotonic() < deadline, "nothing is written"
            time.sleep(0.01)
        producer.join(0.3)
        assert producer.is_alive(), "put does not wait"
        assert len(started) <= most
        assert not cache.done("orig").any()
        go_on.set()
        producer.join(120)
        cache.flush()
        assert not any(one() for one in alive), "a thread that waits holds what it has written"
    assert queue < max(peak) <= most
    assert len(peak) == count
    assert verify(tmp_path / "c", deep=True).done == {"orig": count}
