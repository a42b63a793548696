"""Bad input, as people type it: one clear error, the right exit code, and nothing lost. One table for both programs.

Details of each module have tests of their own; what happens when a process is killed or a disk fills is in
tests/featcache/test_faults.py too, at random instants.
"""

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file
from tiny import Tiny, write_onnx, write_tiny
from typer.testing import CliRunner, Result

import featcache.cli
import pipeline.cli
from featcache import Cache
from featcache.lock import WriterLock
from pipeline.detectors.base import Features
from pipeline.detectors.onnx import OnnxDetector

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class World:
    """Pictures, annotations and a detector; the whole cache of them, and a run with a head trained on it."""

    tiny: Tiny
    cache: Path
    run: Path
    new: Path
    """Nothing is here yet."""

    def extract(self, cache: Path | None = None, *more: object) -> Result:
        options = [f"--{name}={value}" for name, value in self.tiny.arguments.items()]
        return call("pipeline", "extract", *options, "--cache", cache or self.cache, "--batch-size", 1, *more)

    def train(self, cache: Path, *more: object, head: object = "unet") -> Result:
        return call(
            "pipeline", "train", "--cache", cache, "--head", head, "--run", self.new.with_name("run-2"),
            "--steps", 2, "--batch-size", 8, "roi=8", "warmup=0", *more,
        )  # fmt: skip

    def coco(self) -> dict[str, Any]:
        return json.loads(self.tiny.annotations.read_text())

    def annotate(self, coco: dict[str, Any]) -> None:
        self.tiny.annotations.write_text(json.dumps(coco))

    def picture(self, index: int) -> Path:
        """The file of the image at a position of the cache."""
        return self.tiny.images / Cache(self.cache).images[index].file_name

    def folder(self, name: str) -> Path:
        return self.new.with_name(name)


def call(program: str, *words: object) -> Result:
    app: typer.Typer = {"pipeline": pipeline.cli.app, "featcache": featcache.cli.app}[program]
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world = World(write_tiny(folder / "data"), folder / "cache", folder / "run", folder / "new")
    assert world.extract().exit_code == 0
    assert world.train(world.cache).exit_code == 0
    world.folder("run-2").rename(world.run)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> World:
    """A copy that a test may spoil."""
    folder = tmp_path / "world"
    shutil.copytree(made, folder)
    data = folder / "data"
    tiny = Tiny(data / "images", data / "annotations.json", data / "tiny.onnx", data / "tiny.toml")
    return World(tiny, folder / "cache", folder / "run", folder / "new")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but the one that names its writer."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {name: file.read_bytes() for file in files if (name := str(file.relative_to(folder))) != "writer/zarr.json"}


def same_arrays(a: Path, b: Path) -> bool:
    return call("featcache", "diff", a, b).exit_code == 0


def told(result: Result, message: str, hint: str = "", status: int = 1) -> None:
    """An error in words and its status; nothing on stdout that a script could take for a result."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert f"error: {message}" in result.stderr
    if hint:
        assert f"hint: {hint}" in result.stderr
    assert "Traceback" not in result.stderr


# What is refused before anything is written: the cache that is there stays as it is, byte for byte.

Change = Callable[[World], None]
Command = Callable[[World], Result]


def annotated(change: Callable[[dict[str, Any]], object]) -> Change:
    def spoil(world: World) -> None:
        coco = world.coco()
        change(coco)
        world.annotate(coco)

    return spoil


def header(**fields: Any) -> Change:
    """Another value in the header of the cache."""

    def spoil(world: World) -> None:
        file = world.cache / "zarr.json"
        document = json.loads(file.read_text())
        document["attributes"]["featcache"] |= fields
        file.write_text(json.dumps(document))

    return spoil


def replaced(name: str, old: str, new: str) -> Change:
    """Another text in a file of the world."""

    def spoil(world: World) -> None:
        file = world.tiny.toml.with_name(name)
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return spoil


def head_toml(text: str) -> Change:
    return lambda world: world.folder("head.toml").write_text(text) and None


def nothing(world: World) -> None:
    pass


def again(*more: object) -> Command:
    """The extraction that made the cache, once more."""
    return lambda world: world.extract(world.cache, *more)


REFUSED: dict[str, tuple[Change, Command, str, str]] = {
    "an annotation of an image that is not listed": (
        annotated(lambda coco: coco["annotations"][0].update(image_id=4711)),
        again(),
        "{annotations}: annotation 1 names image 4711, which is not listed",
        "add the image to `images`, or drop the annotation",
    ),
    "a category that is not listed": (
        annotated(lambda coco: coco["annotations"][2].update(category_id=99)),
        again(),
        "{annotations}: annotation 3 names category 99, which is not listed",
        "add the category to `categories`, or drop the annotation",
    ),
    "categories that are not the detector's": (
        annotated(lambda coco: coco["categories"].append({"id": 50, "name": "star"})),
        again(),
        "'tiny' gives 3 classes, the annotations have 4 categories",
        "use annotations with the categories the detector was trained on",
    ),
    "an annotation without a mask": (
        annotated(lambda coco: coco["annotations"][1].update(segmentation=[])),
        again(),
        "{annotations}: annotation 2 of image 100 has no mask",
        "masks are learned from `segmentation`: drop annotations with a box only",
    ),
    "annotations that are no JSON": (
        lambda world: world.tiny.annotations.write_text("{") and None,
        again(),
        "{annotations} is not readable JSON",
        "pass COCO instances JSON: --annotations FILE",
    ),
    "annotations that changed since the cache was begun": (
        annotated(lambda coco: coco["annotations"].pop()),
        again(),
        "cache {cache} was made by something else (dataset.annotations_sha256: cache has ",
        "choose another --cache directory",
    ),
    "another codec than the cache has": (
        nothing,
        again("--codec", "fp16"),
        "cache {cache} was made by something else (codec: cache has 'uint8', now 'fp16')",
        "choose another --cache directory",
    ),
    "weights of another detector than the cache was made by": (
        lambda world: write_onnx(world.tiny.weights, batch=1) and None,
        again(),
        "cache {cache} was made by something else (source.weights_sha256: cache has ",
        "choose another --cache directory",
    ),
    "a checkpoint of another model": (
        lambda world: save_file({"backbone.weight": torch.zeros(1)}, world.folder("other.safetensors")),
        lambda world: call(
            "pipeline", "extract", "--detector", "shapes-tiny", "--weights", world.folder("other.safetensors"),
            "--images", world.tiny.images, "--annotations", world.tiny.annotations, "--cache", world.cache,
        ),
        "{folder}/other.safetensors",
        "",
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
    "a head that was trained on another detector": (
        lambda world: header(
            spec=Cache(world.cache).spec.to_json() | {"source": Cache(world.cache).spec.source | {"name": "other"}}
        )(world),
        lambda world: call("pipeline", "evaluate", "--cache", world.cache, "--run", world.run),
        "",  # which field, is checked in tests/test_evaluate.py
        "",
    ),
    "an unknown key in the TOML of a detector": (
        replaced("tiny.toml", "top_k = 20", "topk = 20"),
        again(),
        "{toml}: unknown key 'topk'",
        "did you mean 'top_k'?",
    ),
    "an unknown key in a table of the TOML of a detector": (
        replaced("tiny.toml", "resize = ", "resise = "),
        again(),
        "{toml}: transform: unknown key 'resise'",
        "did you mean 'resize'?",
    ),
    "an unknown key in the TOML of a head": (
        head_toml('family = "mask-frozen-detr"\nabout = "mine"\n[train]\nstps = 3\n'),
        lambda world: world.train(world.cache, head=world.folder("head.toml")),
        "{folder}/head.toml: [train]: unknown key 'stps'",
        "did you mean 'steps'?",
    ),
    "an unknown key in the TOML of an ablation": (
        lambda world: world.folder("table.toml").write_text('detectr = "x"\n[[rows]]\nname = "a"\n') and None,
        lambda world: call(
            "pipeline", "ablate", world.folder("table.toml"), "--cache", world.cache, "--out", world.folder("out")
        ),
        "{folder}/table.toml: unknown key 'detectr'",
        "did you mean 'detector'?",
    ),
    "no GPU for the detector": (
        nothing,
        lambda world: call(
            "pipeline", "extract", "--detector", "shapes-tiny", "--images", world.tiny.images,
            "--annotations", world.tiny.annotations, "--cache", world.cache, "--device", "cuda",
        ),
        "torch sees no GPU for 'cuda'",
        "install a CUDA build of torch, or pass --device cpu",
    ),
    "no GPU for the head": (
        nothing,
        lambda world: world.train(world.cache, "--device", "cuda"),
        "torch sees no GPU for 'cuda'",
        "install a CUDA build of torch, or pass --device cpu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence_and_nothing_is_touched(
    world: World, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spoil, command, message, hint = REFUSED[case]
    spoil(world)
    before = contents(world.cache)
    places = {
        "cache": world.cache, "new": world.new, "annotations": world.tiny.annotations, "images": world.tiny.images,
        "toml": world.tiny.toml, "folder": world.cache.parent,
    }  # fmt: skip
    told(command(world), message.format(**places), hint.format(**places))
    assert contents(world.cache) == before


# What is odd but right: it is taken as COCO means it, and stage 2 works on it.

TAKEN: dict[str, Change] = {
    "an image without objects": annotated(
        lambda coco: coco.update(annotations=[a for a in coco["annotations"] if a["image_id"] not in (100, 93)])
    ),
    "no annotations at all": annotated(lambda coco: coco.update(annotations=[])),
    "a box of no area": annotated(
        lambda coco: coco["annotations"][0].update(bbox=[20, 20, 0, 0], area=0, segmentation=[[20, 20] * 3])
    ),
    "crowd regions alone": annotated(
        lambda coco: coco.update(annotations=[a for a in coco["annotations"] if a["iscrowd"]])
    ),
    "a mask that goes beyond the image": annotated(
        lambda coco: coco["annotations"][0].update(segmentation=[[-30, -30, 500, -30, 500, 20, -30, 20]])
    ),
    "a mask outside the image": annotated(
        lambda coco: coco["annotations"][0].update(segmentation=[[900, 900, 950, 900, 950, 950, 900, 950]])
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_odd_annotations_are_taken_as_they_are(world: World, case: str) -> None:
    TAKEN[case](world)
    count = len(world.coco()["annotations"])
    assert world.extract(world.new).exit_code == 0
    cache = Cache(world.new)
    assert sum(len(cache.ground_truth(i)) for i in range(len(cache))) == count
    trained = world.train(world.new)
    assert trained.exit_code == 0, trained.stderr
    evaluated = call("pipeline", "evaluate", "--cache", world.new, "--run", world.folder("run-2"))
    assert evaluated.exit_code == 0, evaluated.stderr
    lines = (world.folder("run-2") / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get("loss", 0.0)) for line in lines)


# What goes wrong on the way: the rest is done and kept, and the same command ends as if nothing had been.


def test_images_that_cannot_be_read_are_named_and_the_others_are_done(world: World) -> None:
    broken, absent = world.picture(2), world.picture(5)
    kept = {file: file.read_bytes() for file in (broken, absent)}
    broken.write_bytes(kept[broken][:60])
    absent.unlink()
    result = world.extract(world.new)
    told(result, "2 images could not be read and were left out:", "repair them and run the same command again")
    assert f"  {broken}: " in result.stderr
    assert f"  {absent}: no such file" in result.stderr
    assert np.flatnonzero(~Cache(world.new).done()).tolist() == [2, 5]
    for file, content in kept.items():
        file.write_bytes(content)
    assert world.extract(world.new).exit_code == 0
    assert same_arrays(world.new, world.cache)


def test_strict_stops_at_the_first_of_them(world: World) -> None:
    broken = world.picture(4)
    kept = broken.read_bytes()
    broken.write_bytes(b"")
    told(world.extract(world.new, "--strict"), f"{broken}: ")
    assert Cache(world.new).done().tolist() == [True] * 4 + [False] * 4
    broken.write_bytes(kept)
    assert world.extract(world.new).exit_code == 0
    assert same_arrays(world.new, world.cache)


@pytest.mark.parametrize(
    ("value", "codec", "what"),
    [
        (float("nan"), "uint8", "nan"),
        (float("inf"), "fp16", "inf"),
        (float("-inf"), "none", "-inf"),
        (1e6, "fp16", "1e+06"),
    ],
)
def test_features_that_cannot_be_stored_name_level_and_image(
    world: World, monkeypatch: pytest.MonkeyPatch, value: float, codec: str, what: str
) -> None:
    """The fourth image has the bad value; those before it are kept."""
    assert world.extract(world.folder("good"), "--codec", codec).exit_code == 0
    detect, calls = OnnxDetector.detect, iter(range(100))

    def spoilt(self: OnnxDetector, images: torch.Tensor) -> Features:
        features = detect(self, images)
        if next(calls) == 3:
            features.maps["e16"][0, 2, 1, 1] = value
        return features

    with monkeypatch.context() as patch:
        patch.setattr(OnnxDetector, "detect", spoilt)
        result = world.extract(world.new, "--codec", codec)
    told(result, f"image {Cache(world.cache).images[3].id}, view orig, level e16")
    assert what in result.stderr.lower() or "finite" in result.stderr
    assert not Cache(world.new).done()[3:].any()
    assert call("featcache", "verify", world.new, "--deep").exit_code == 0
    assert world.extract(world.new, "--codec", codec).exit_code == 0
    assert same_arrays(world.new, world.folder("good"))


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


# Misuse, and the traceback.


def test_misuse_ends_with_2_and_says_what_was_meant(world: World) -> None:
    told(world.extract(world.new, "--views", "orig,hflipp"), "unknown view 'hflipp'", status=2)
    told(world.train(world.cache, "roii=1"), "the command line: unknown setting 'roii'", "did you mean 'roi'?", 2)
    told(world.extract(world.new, "--device", "gpu"), "unknown device 'gpu'", "cpu, cuda or cuda:N", 2)
    told(world.extract(world.new, "--shard", "3/2"), "shard is '3/2'", "expected I/N", status=2)
    told(
        call("featcache", "ls", world.cache, "--sort", "widht"), "there is no field 'widht'", "did you mean 'width'?", 2
    )
    assert call("pipeline", "extract").exit_code == 2
    assert call("featcache", "verify", world.cache, "--images", "one").exit_code == 2
    assert not world.new.exists()


@pytest.mark.parametrize("program", ["pipeline", "featcache"])
def test_only_debug_shows_a_traceback(world: World, program: str) -> None:
    words = {"pipeline": ("evaluate", "--cache", world.new, "--run", world.run), "featcache": ("stats", world.new)}[
        program
    ]
    quiet = call(program, *words)
    told(quiet, f"no cache at {world.new}", "write one:  python -m pipeline extract --help")
    for loud in (call(program, "--debug", *words), call(program, *words, "--debug")):
        assert loud.exit_code == 1
        assert "Traceback" in loud.stderr
        assert quiet.stderr in loud.stderr


@pytest.mark.parametrize(
    ("program", "place"),
    [("pipeline", "pipeline.detectors.listing.list_detectors"), ("featcache", "featcache.summary.info")],
)
def test_what_nobody_foresaw_is_one_line_too(monkeypatch: pytest.MonkeyPatch, program: str, place: str) -> None:
    monkeypatch.setattr(place, lambda *_: 1 / 0)
    words = ("detectors",) if program == "pipeline" else ("info", "somewhere")
    name = "python -m pipeline" if program == "pipeline" else "featcache"
    told(call(program, *words), "unexpected ZeroDivisionError: division by zero", f"{name} --debug ... shows where")
    assert "Traceback" in call(program, "--debug", *words).stderr
