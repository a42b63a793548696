"""Weights of another model, unknown keys, no GPU, misuse; and who sees a traceback."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import write_onnx
from world import Case, World, again, call, head_toml, header, nothing, replaced, told

from featcache import Cache

REFUSED: dict[str, Case] = {
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
        "{folder}/other.safetensors is not a checkpoint of 'shapes-tiny': ",
        "its keys are not of an official checkpoint; expected a file of 'shapes-tiny'",
    ),
    "a head that was trained on another detector": (
        lambda world: header(
            spec=Cache(world.cache).spec.to_json() | {"source": Cache(world.cache).spec.source | {"name": "other"}}
        )(world),
        lambda world: call("pipeline", "evaluate", "--cache", world.cache, "--run", world.run),
        "cache {cache} gives other features than the head was trained on: name is 'other', the head's is 'tiny'",
        "use the detector that the head was trained with, or train a head on this one; --force evaluates all the same",
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


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence_and_nothing_is_touched(world: World, case: str) -> None:
    world.refuses(REFUSED[case])


# Misuse, and the traceback.


def test_misuse_ends_with_2_and_says_what_was_meant(world: World) -> None:
    told(world.extract(world.new, "--views", "orig,hflipp"), "unknown view 'hflipp'", status=2)
    told(world.train(world.cache, "roii=1"), "the command line: unknown setting 'roii'", "did you mean 'roi'?", 2)
    told(world.extract(world.new, "--device", "gpu"), "unknown device 'gpu'", "cpu, cuda or cuda:N", 2)
    message = "max-error 0.01 is of codec uint8, and the codec here is fp16"
    told(world.extract(world.new, "--codec", "fp16", "--max-error", 0.01), message, "leave --max-error out", 2)
    told(world.extract(world.new, "--detector", "hdetr-r5"), "unknown detector 'hdetr-r5'", "did you mean", 2)
    message = "--panoptic-images goes with --panoptic"
    told(world.extract(world.new, "--panoptic-images", world.tiny.images), message, "add --panoptic JSON", 2)
    told(world.extract(world.new, "--shard", "3/2"), "shard is '3/2'", "expected I/N", status=2)
    told(
        call("featcache", "ls", world.cache, "--sort", "widht"), "there is no field 'widht'", "did you mean 'width'?", 2
    )
    assert call("pipeline", "extract").exit_code == 2
    assert call("featcache", "verify", world.cache, "--images", "one").exit_code == 2
    assert not world.new.exists()


def test_what_is_given_twice_is_refused(world: World) -> None:
    twice = "leave one of them out"
    told(world.train(world.cache, "steps=7"), "steps is given twice: --steps 2 and steps=7", twice, 2)
    told(world.train(world.cache, "batch_size=7"), "batch_size is given twice: --batch-size 8 and", twice, 2)
    told(world.train(world.cache, "lr=1", "lr=2"), "lr is given twice: 1 and 2", twice, 2)
    words = ("pipeline", "ablate", "table05", "--cache", world.cache, "--out", world.new, "--dry-run")
    told(call(*words, "--steps", 2, "steps=9"), "steps is given twice: --steps 2 and steps=9", twice, 2)
    told(call(*words, "--seeds", "0,1", "seed=9"), "seed is given twice: --seeds 0,1 and seed=9", twice, 2)


def test_an_option_that_would_say_nothing_is_refused(world: World) -> None:
    described = call("pipeline", "describe", "--head", "unet", "--weights", world.folder("none"))
    told(described, "the TOML of 'hdetr-r50' tells the widths already", "leave out --weights", 2)
    described = call("pipeline", "describe", "--head", "unet", "--weights", "x", "--cache", world.cache)
    told(described, "the cache tells the widths already", "leave out --weights", 2)
    words = ("pipeline", "ablate", "table05", "--cache", world.cache, "--out", world.new, "--dry-run")
    told(call(*words, "--val-cache", world.folder("none")), f"no cache at {world.folder('none')}")


def test_a_file_where_a_directory_belongs_is_told(world: World) -> None:
    file = world.folder("file")
    file.write_text("not a directory")
    message = f"{file} is a file, not a directory"
    told(world.extract(file), message, "give another --cache", 2)
    source = [f"--{name}={world.tiny.arguments[name]}" for name in ("detector", "weights", "images")]
    told(call("pipeline", "predict", *source, "--run", world.run, "--out", file), message, "give another --out", 2)
    run = ("pipeline", "evaluate", "--cache", world.cache, "--run", file)
    told(call(*run, "--reference", "box"), message, "give another --run", 2)
    ablated = call("pipeline", "ablate", "table05", "--cache", world.cache, "--out", file)
    told(ablated, message, "give another --out", 2)
    assert file.read_text() == "not a directory"


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
