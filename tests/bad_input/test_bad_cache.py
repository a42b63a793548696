"""Caches: of something else, of another format, half written, damaged, taken, on a full disk. Nothing is lost."""

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from world import ROOT, Case, World, again, annotated, call, contents, header, nothing, same_arrays, told

from featcache import Cache
from featcache.lock import WriterLock

REFUSED: dict[str, Case] = {
    "annotations that changed since the cache was begun": (
        annotated(lambda coco: coco["annotations"].pop()),
        again(),
        "cache {cache} was made by something else (dataset.annotations_sha256: cache has ",
        "choose another --cache directory",
    ),
    "another codec than the cache has": (
        nothing,
        again("--codec", "fp16"),
        "cache {cache} was made by something else (codec: cache has 'uint8', now 'fp16'; max_error: cache has ",
        "choose another --cache directory",
    ),
    "a cache of another format version, read": (
        header(format_version=99),
        lambda world: call("featcache", "info", world.cache),
        "{cache} has cache format version 99, this release reads version ",
        "use the release that wrote it, or extract again",
    ),
    "a cache of another format version, written": (
        header(format_version=99),
        again(),
        "{cache} has cache format version 99, this release reads version ",
        "use the release that wrote it, or extract again",
    ),
    "a cache of another format version, trained on": (
        header(format_version=99),
        lambda world: world.train(world.cache),
        "{cache} has cache format version 99, this release reads version ",
        "use the release that wrote it, or extract again",
    ),
    "a header that is torn": (
        lambda world: (world.cache / "zarr.json").write_text("{") and None,
        lambda world: call("featcache", "info", world.cache),
        "{cache}/zarr.json is damaged: it is no JSON",
        "extract the cache again",
    ),
    "a folder that is no cache": (
        lambda world: world.new.mkdir(),
        lambda world: call("featcache", "info", world.new),
        "no cache at {new}",
        "write one:  python -m pipeline extract --help",
    ),
    "a cache whose creation was interrupted": (
        lambda world: shutil.copytree(world.cache / "views", world.new / "views")
        and (world.new / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
        and None,
        lambda world: call("featcache", "ls", world.new),
        "{new} is no finished cache: its creation was interrupted, or another program made it",
        "run the extraction that was to make it again",
    ),
    "a cache folder with something else in it": (
        nothing,
        lambda world: world.extract(world.tiny.images),
        "{images} is not empty and not a cache",
        "choose a new or empty directory for the cache",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence_and_nothing_is_touched(world: World, case: str) -> None:
    world.refuses(REFUSED[case])


def test_a_damaged_chunk_is_named_by_all_who_read_it_and_repaired_alone(world: World) -> None:
    assert world.extract(world.new, "--codec", "none").exit_code == 0
    whole = contents(world.new)
    file = next(iter(sorted((world.new / "views/orig/maps/c1").glob("c.*"))))
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    image_id = Cache(world.new).images[0].id
    place = f"image {image_id}, view orig, level c1 of cache {world.new}: checksum does not match"
    told(world.train(world.new), place, f"featcache verify {world.new} --deep")
    told(call("featcache", "show", world.new, image_id), place, f"featcache verify {world.new} --deep")
    found = call("featcache", "verify", world.new, "--deep")
    assert found.exit_code == 1
    assert f"damaged: image {image_id}, view orig, c1: checksum does not match" in found.stdout
    assert call("featcache", "verify", world.new, "--deep", "--repair").exit_code == 0
    assert Cache(world.new).done().tolist() == [False, *[True] * 7]
    assert world.extract(world.new, "--codec", "none").exit_code == 0
    assert contents(world.new) == whole


def test_a_cache_half_written_is_good_as_far_as_it_is(world: World) -> None:
    """Killed after three images; what reads it says how far it is, and works with that."""
    script = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from test_extract import detect_then
from pipeline.cli import main
from pipeline.detectors.onnx import OnnxDetector
OnnxDetector.detect = detect_then(lambda number: number == 4 and os._exit(9))
main()
"""
    options = [f"--{name}={value}" for name, value in world.tiny.arguments.items()]
    words = ["extract", *options, "--cache", str(world.new), "--batch-size", "1"]
    assert subprocess.run([sys.executable, "-c", script, *words], check=False, capture_output=True).returncode == 9
    assert call("featcache", "verify", world.new, "--deep").exit_code == 0
    assert "unfinished, and no process writes it" in call("featcache", "info", world.new).stdout
    absent = Cache(world.new).images[7].id
    told(
        call("featcache", "show", world.new, absent),
        f"image {absent}, view orig of cache {world.new} is not extracted yet",
        "run the extraction again, it continues",
    )
    assert world.extract(world.new).exit_code == 0
    assert same_arrays(world.new, world.cache)


def test_a_second_writer_is_turned_away(world: World) -> None:
    before = contents(world.cache)
    lock = WriterLock(world.cache)
    try:
        message, hint = f"cache {world.cache} is being written by another process (pid ", "wait for it, or stop it"
        told(world.extract(), message, hint)
        told(call("featcache", "prune", world.cache, "--levels", "c1", "--yes"), message, hint)
        told(call("featcache", "prune", world.cache, "--unfinished", "--yes"), message, hint)
    finally:
        lock.release()
    assert contents(world.cache) == before
    assert world.extract().exit_code == 0


def limit_files(most: int) -> Callable[[], None]:
    """No file of the process may grow beyond `most` bytes: a disk that is full for it alone."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return limit


def test_a_full_disk_is_told_and_the_same_command_goes_on(world: World) -> None:
    options = [f"--{name}={value}" for name, value in world.tiny.arguments.items()]
    words = [sys.executable, "-m", "pipeline", "extract", *options, "--cache", str(world.new), "--codec", "none"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=limit_files(6000))
    assert result.returncode == 1
    assert "error: no space left to write" in result.stderr
    assert "hint: every image marked done is safe; free some space and run the same command again" in result.stderr
    assert "Traceback" not in result.stderr
    assert world.extract(world.new, "--codec", "none").exit_code == 0
    assert call("featcache", "verify", world.new, "--deep").exit_code == 0
    assert same_arrays_as_codec(world)


def same_arrays_as_codec(world: World) -> bool:
    """As an extraction that never was short of space."""
    assert world.extract(world.folder("good"), "--codec", "none").exit_code == 0
    return same_arrays(world.new, world.folder("good"))


def test_a_full_disk_under_a_copy_leaves_the_source_and_ends_with_space(world: World) -> None:
    before, target = contents(world.cache), world.folder("copy")
    words = [sys.executable, "-m", "featcache.cli", "copy", str(world.cache), str(target), "--codec", "none"]
    words[1:3] = ["-c", "from featcache.cli import main; main()"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=limit_files(6000))
    assert result.returncode == 1
    assert "error: no space left to write" in result.stderr
    assert contents(world.cache) == before
    assert not target.exists()
    assert call("featcache", "copy", world.cache, target, "--codec", "none").exit_code == 0
    assert call("featcache", "verify", target, "--deep").exit_code == 0
