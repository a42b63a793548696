"""Processes of their own for the fault tests: they extract into a cache and are killed, limited or full."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cache_toy import make_features, make_images, make_spec, make_truth

from featcache import Cache, CacheWriter, LevelSpec, maintain
from featcache import prune as pruning

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["child"])  # torch and zarr are imported once, not once per process

STEPS = ("fsync", "pwrite", "ftruncate", "replace", "open", "rename", "unlink", "rmdir")
"""Calls to the operating system that change what is on disk, or come just before one that does."""


def start(body: Callable[..., None], *arguments: Any) -> BaseProcess:
    # Here and not at import: the server imports this module, and would start a server of its own, which would ...
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # the server does not take over sys.path
        forkserver.ensure_running()
    process = CONTEXT.Process(target=body, args=arguments)
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Exit code of a process, negative for the signal that ended it."""
    process.join(120)
    assert process.exitcode is not None, "process hangs"
    return process.exitcode


def extract(path: Path, count: int, shard: int, views: tuple[str, ...] = ("orig",), flush_bytes: int = 1) -> None:
    """The extraction command in small: does what is pending."""
    torch.set_num_threads(1)
    tables = make_spec(views=views), make_images(count), make_truth(count)
    with CacheWriter(path, *tables, shard=shard, flush_bytes=flush_bytes) as writer:
        for view in views:
            for index in writer.pending(view):
                writer.put(index, view, **make_features(index, view))


def until_image(
    done: int, path: Path, count: int, shard: int, views: tuple[str, ...] = ("orig",), flush_bytes: int = 1
) -> None:
    """`extract`, killed with so many images of the first view on disk and the next one handed in."""
    torch.set_num_threads(1)
    tables = make_spec(views=views), make_images(count), make_truth(count)
    with CacheWriter(path, *tables, shard=shard, flush_bytes=flush_bytes) as writer:
        for index in range(done):
            writer.put(index, views[0], **make_features(index, views[0]))
        writer.flush()
        writer.put(done, views[0], **make_features(done, views[0]))
        os.kill(os.getpid(), signal.SIGKILL)


def until_step(last: int, body: Callable[..., None], *arguments: Any) -> None:
    """`body`, killed before its `last`-th step of `STEPS`, zarr's creation of arrays included."""

    def killed_at(seen: int) -> None:
        if seen >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    before_steps(killed_at)
    body(*arguments)


def count_steps(created: Any, whole: Any, *arguments: Any) -> None:
    """`extract`; how many steps it takes until there is a cache, and in all."""
    header: Path = arguments[0] / "zarr.json"

    def count(seen: int) -> None:
        whole.value = seen
        if not created.value and header.exists() and b"format_version" in header.read_bytes():
            created.value = seen

    before_steps(count)
    extract(*arguments)


def before_steps(act: Callable[[int], None]) -> None:
    """Call `act` before each step from now on, with its number."""
    seen = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **keywords: Any) -> Any:
            nonlocal seen
            seen += 1
            act(seen)
            return call(*arguments, **keywords)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def copy(source: Path, target: Path) -> None:
    """`featcache copy` of the first level, to another codec."""
    maintain.run(maintain.plan_copy(Cache(source), target, codec="fp16", levels=["c1"]))


def merge(parts: list[Path], target: Path) -> None:
    """`featcache merge`."""
    maintain.run(maintain.plan_merge([Cache(part) for part in parts], target))


def prune(path: Path) -> None:
    """`featcache prune` of a level and of what is unfinished."""
    pruning.prune(path, levels=["c1"], unfinished=True)


def extract_and_wait(path: Path, ready: Any) -> None:
    """Holds the cache open for writing until killed or interrupted."""
    with CacheWriter(path, make_spec(), make_images(4), make_truth(4)) as writer:
        writer.put(0, "orig", **make_features(0))
        writer.put(1, "orig", **make_features(1))
        ready.set()
        while True:  # not signal.pause: a signal just before it would be waited for without end
            time.sleep(0.05)


def extract_until_full(path: Path, count: int, shard: int, messages: Any) -> None:
    """`extract` that sends the kind and text of the error that ends it."""
    try:
        extract(path, count, shard)
        messages.put(("no error", ""))
    except Exception as error:
        messages.put((type(error).__name__, str(error)))


def extract_with_file_limit(path: Path, count: int, limit: int, messages: Any) -> None:
    """`extract_until_full` where no file may grow beyond `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    extract_until_full(path, count, 1, messages)


BIG = (LevelSpec("c1", 4, 64, (64, 64)),)  # 1 MiB of float32 an image


def peak_of_writing(path: Path, count: int, peak: Any) -> None:
    """Peak memory of this process in bytes after `count` images of 1 MiB each, 4 in a shard."""
    torch.set_num_threads(1)
    spec = make_spec(levels=BIG, codec="none")
    with CacheWriter(path, spec, make_images(count), make_truth(count), shard=4) as writer:
        for index in range(count):
            features = make_features(index)
            writer.put(index, "orig", **{**features, "maps": {"c1": torch.full((64, 64, 64), float(index))}})
    peak.value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of_reading(path: Path, count: int, peak: Any) -> None:
    """Peak memory of this process in bytes after reading `count` images with the loader."""
    from featcache import Loader

    torch.set_num_threads(1)
    for batch in Loader(Cache(path), 4, indices=range(count), threads=2):
        assert float(batch[0].maps["c1"][0, 0, 0]) == batch[0].index
    peak.value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
