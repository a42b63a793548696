"""What a cache promises when things go wrong: killed at any instant, interrupted, disk full, little memory."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import child
import numpy as np
import pytest
from cache_toy import arrays_of

from featcache import Cache, CacheWriter
from featcache.checks import verify
from featcache.delta import MEASURED_IMAGES
from featcache.errors import LockedError, NotACacheError

VIEWS = ("orig", "hflip")


def assert_promises_kept(path: Path) -> None:
    """Everything marked done is there and whole; a cache that was not created yet is not taken for one."""
    try:
        cache = Cache(path)
    except NotACacheError:
        return
    assert verify(path, deep=True).good
    for view in cache.views:
        for index in np.flatnonzero(cache.done(view)):
            cache.entry(int(index), view)


def assert_equal_caches(a: Path, b: Path) -> None:
    mine, theirs = arrays_of(a), arrays_of(b)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


WAYS = {"no shards": (1, 1), "shards of 3": (3, 1), "shards of 3, flushed together": (3, 8 << 20)}
"""Images in a file, and bytes that wait to be flushed together."""
COUNT = 12
"""Images: the first MEASURED_IMAGES of a view are queued together, those after them as they come."""


@pytest.fixture(params=WAYS)
def files(request: pytest.FixtureRequest) -> tuple[int, tuple[str, ...], int]:
    """What `child.extract` takes after the number of images."""
    shard, flush_bytes = WAYS[request.param]
    return shard, VIEWS, flush_bytes


def test_killed_at_random_instants(tmp_path: Path, files: tuple[int, tuple[str, ...], int]) -> None:
    """Real processes, SIGKILL after a random time, the same command again until it is through; 9 kills each."""
    whole, count = tmp_path / "whole", COUNT
    assert child.finish(child.start(child.extract, whole, count, *files)) == 0
    started = time.monotonic()
    assert child.finish(child.start(child.extract, tmp_path / "timed", count, *files)) == 0
    usual = time.monotonic() - started
    kills, caches, rng = 0, 0, random.Random(files[0])
    while kills < 9:
        path = tmp_path / f"killed-{caches}"
        caches += 1
        for _ in range(3):
            process = child.start(child.extract, path, count, *files)
            process.join(rng.uniform(0, usual))
            process.kill()
            kills += child.finish(process) == -signal.SIGKILL
            if path.exists():
                assert_promises_kept(path)
        assert child.finish(child.start(child.extract, path, count, *files)) == 0
        assert_equal_caches(path, whole)


def test_killed_at_random_steps(tmp_path: Path, files: tuple[int, tuple[str, ...], int]) -> None:
    """Killed just before a write, rename or flush that chance picks: of the creation, of what follows it; continued."""
    whole, count = tmp_path / "whole", COUNT
    assert child.finish(child.start(child.extract, whole, count, *files)) == 0
    created, last_one = steps_of_extraction(tmp_path / "counted", count, *files)
    rng = random.Random(10 + files[0])
    for number in range(9):
        path = tmp_path / f"killed-{number}"
        for steps in ((1, created), (created, last_one)):
            last = rng.randint(*steps)
            code = child.finish(child.start(child.until_step, last, child.extract, path, count, *files))
            assert code in (0, -signal.SIGKILL)
            if path.exists():
                assert_promises_kept(path)
        assert child.finish(child.start(child.extract, path, count, *files)) == 0
        assert_equal_caches(path, whole)


def test_killed_between_two_images(tmp_path: Path, files: tuple[int, tuple[str, ...], int]) -> None:
    """Some images are done, the next is on its way: chance seldom meets that where threads are slow."""
    whole = tmp_path / "whole"
    assert child.finish(child.start(child.extract, whole, COUNT, *files)) == 0
    for done in (1, MEASURED_IMAGES, MEASURED_IMAGES + 1, COUNT - 2):
        path = tmp_path / f"killed-{done}"
        code = child.finish(child.start(child.until_image, done, path, COUNT, *files))
        assert code == -signal.SIGKILL
        assert_promises_kept(path)
        assert 0 < Cache(path).done(VIEWS[0]).sum() < COUNT
        assert child.finish(child.start(child.extract, path, COUNT, *files)) == 0
        assert_equal_caches(path, whole)


def steps_of_extraction(path: Path, *arguments: Any) -> tuple[int, int]:
    """How many of `child.STEPS` an extraction takes until the cache is made, and in all."""
    created, whole = child.CONTEXT.Value("q", 0), child.CONTEXT.Value("q", 0)
    assert child.finish(child.start(child.count_steps, created, whole, path, *arguments)) == 0
    return created.value, whole.value


@pytest.mark.parametrize("change", ["copy", "merge", "prune"])
def test_a_change_killed_at_random_steps_loses_nothing(
    make_cache: Callable[..., Path], tmp_path: Path, change: str
) -> None:
    """Killed before a write, rename or removal that chance picks; what was there is good, the same command ends it."""
    parts = [make_cache(5, name="a", order=[0, 1, 3]), make_cache(5, name="b", order=[2, 4])]
    before = [arrays_of(part) for part in parts]

    def work(folder: Path) -> tuple[Callable[..., None], tuple[Any, ...], Path]:
        """The change, its arguments and what it makes; prune works on a copy of its own."""
        if change == "prune":
            if not folder.exists():
                shutil.copytree(parts[0], folder / "pruned")
            return child.prune, (folder / "pruned",), folder / "pruned"
        folder.mkdir(exist_ok=True)
        target = folder / "target"
        return (child.copy, (parts[0], target), target) if change == "copy" else (child.merge, (parts, target), target)

    body, arguments, whole = work(tmp_path / "whole")
    assert child.finish(child.start(body, *arguments)) == 0
    rng, killed = random.Random(change), 0
    for number in range(10):
        body, arguments, result = work(tmp_path / f"killed-{number}")
        killed += child.finish(child.start(child.until_step, rng.randint(1, 400), body, *arguments)) == -signal.SIGKILL
        if change == "prune":  # one of the two names holds a whole cache at any time
            survivor = result if result.exists() else result.with_name("pruned.prune") / "old"
            assert verify(survivor, deep=True).good
        else:
            if result.exists():
                assert verify(result, deep=True).good
            for part, arrays in zip(parts, before, strict=True):
                now = arrays_of(part)
                assert all(np.array_equal(arrays[name], now[name]) for name in arrays)
        if change == "prune" or not result.exists():
            assert child.finish(child.start(body, *arguments)) == 0
        assert_equal_caches(result, whole)
    assert killed >= 5


def test_ctrl_c_keeps_what_was_put(tmp_path: Path) -> None:
    path, ready = tmp_path / "c", child.CONTEXT.Event()
    process = child.start(child.extract_and_wait, path, ready)
    assert ready.wait(60)
    os.kill(process.pid or 0, signal.SIGINT)
    assert child.finish(process) == 1
    assert Cache(path).done().tolist() == [True, True, False, False]
    assert verify(path, deep=True).good


def test_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    path, ready = tmp_path / "c", child.CONTEXT.Event()
    process = child.start(child.extract_and_wait, path, ready)
    assert ready.wait(60)
    with pytest.raises(LockedError, match=f"pid {process.pid}"):
        CacheWriter(path, Cache(path).spec, Cache(path).images, [Cache(path).ground_truth(i) for i in range(4)])
    process.kill()
    child.finish(process)
    with CacheWriter(
        path, Cache(path).spec, Cache(path).images, [Cache(path).ground_truth(i) for i in range(4)]
    ) as writer:
        assert 3 in writer.pending("orig")


def test_file_limit_is_a_clear_message_and_loses_nothing(tmp_path: Path) -> None:
    path, messages = tmp_path / "c", child.CONTEXT.SimpleQueue()
    assert child.finish(child.start(child.extract_with_file_limit, path, 4, 300, messages)) == 0
    kind, text = messages.get()
    assert kind == "DiskFullError"
    assert f"no space left to write {path} (File too large)" in text
    assert "run the same command again, it continues" in text
    assert_promises_kept(path)
    assert child.finish(child.start(child.extract, path, 4, 1)) == 0
    assert Cache(path).done().all()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 500 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting a tmpfs needs privileges: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("shard", [1, 4])
def test_full_disk_is_a_clear_message_and_continues_with_space(small_disk: Path, tmp_path: Path, shard: int) -> None:
    path, count, messages = small_disk / "c", 150, child.CONTEXT.SimpleQueue()
    assert child.finish(child.start(child.extract_until_full, path, count, shard, messages)) == 0
    kind, text = messages.get()
    assert kind == "DiskFullError"
    assert "No space left on device" in text
    assert 0 < Cache(path).done().sum() < count
    assert_promises_kept(path)
    assert not list(path.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert child.finish(child.start(child.extract, path, count, shard)) == 0
    assert child.finish(child.start(child.extract, tmp_path / "whole", count, shard)) == 0
    assert_equal_caches(path, tmp_path / "whole")


def test_memory_stays_flat_when_writing_and_reading(tmp_path: Path) -> None:
    """Six times the images, the same peak memory within 60 MiB: with all of them kept it would be 200 MiB more."""
    for body in (child.peak_of_writing, child.peak_of_reading):
        peaks: list[int] = []
        for count in (40, 240):
            peak = child.CONTEXT.Value("q", 0)
            path = tmp_path / f"c{count}" if body is child.peak_of_writing else tmp_path / "c240"
            assert child.finish(child.start(body, path, count, peak)) == 0
            peaks.append(peak.value)
        assert peaks[1] - peaks[0] < 60 << 20
