import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import Tiny
from tiny_hf import write_hf
from typer.testing import CliRunner, Result

from featcache import Cache
from pipeline.cli import app
from pipeline.masks.boundary import boundary_known


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def extract(tiny: Tiny, cache: Path, *more: object) -> Result:
    options = (f"--{name}={value}" for name, value in tiny.arguments.items())
    return call("extract", *options, "--cache", cache, *more)


def test_the_whole_story(tiny: Tiny, tmp_path: Path) -> None:
    """What a user types, in order; results on stdout, progress on stderr."""
    train, val, run = tmp_path / "train", tmp_path / "val", tmp_path / "run"
    made = extract(tiny, train, "--views", "orig,hflip", "--batch-size", 3, "--codec", "fp16")
    assert (made.exit_code, made.stdout) == (0, f"{train}\n")
    assert "16/16 images" in made.stderr
    assert Cache(train).views == ("orig", "hflip")
    assert extract(tiny, val, "--limit", 4).exit_code == 0
    trained = call(
        "train", "--cache", train, "--val-cache", val, "--head", "unet", "--run", run,
        "--steps", 2, "--batch-size", 2, "--seed", 1, "roi=8", "warmup=0",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    assert trained.stdout.splitlines()[0] == str(run)
    assert "segm" in trained.stdout
    assert json.loads((run / "metrics.json").read_text())["images"] == 4
    evaluated = call("evaluate", "--cache", train, "--run", run)
    assert evaluated.exit_code == 0
    assert re.search(r"8/8 images, .* images/s, .* MB/s, 0.00 GB read", evaluated.stderr)
    header, bbox, segm = (line.split() for line in evaluated.stdout.splitlines()[:3])
    assert header[:3] == ["AP", "AP50", "AP75"]
    assert (bbox[0], segm[0], len(segm)) == ("bbox", "segm", 13)
    assert "AP gained if made perfect: " in evaluated.stdout
    told = call("evaluate", "--cache", val, "--run", run, "--json")
    assert json.loads(told.stdout) == json.loads((run / "metrics.json").read_text())
    classes = call("evaluate", "--cache", val, "--run", run, "--per-class").stdout.splitlines()[-4:]
    assert classes[0].split()[:4] == ["class", "objects", "mask", "AP"]
    page = call("report", run, "--cache", val, "--out", tmp_path / "report.html", "--count", 2)
    assert (page.exit_code, page.stdout) == (0, f"{tmp_path / 'report.html'}\n")
    predicted = call(
        "predict", "--detector", tiny.toml, "--weights", tiny.weights, "--run", run, "--images", tiny.images,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert predicted.exit_code == 0
    assert re.search(r"8/8 images, .* images/s, .* MB/s, 0.00 GB written, \d+ GB free", predicted.stderr)
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 8


def test_reference_evaluation_needs_no_trained_run(tiny: Tiny, tmp_path: Path) -> None:
    extract(tiny, tmp_path / "c")
    assert call("evaluate", "--cache", tmp_path / "c", "--run", tmp_path / "r", "--reference", "box").exit_code == 0
    assert (tmp_path / "r" / "metrics.json").exists()


def test_a_detector_that_brings_its_weights_needs_none(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded command names its folder so that it is found from anywhere."""
    write_hf(tmp_path / "model", "rt_detr")
    monkeypatch.chdir(tmp_path)
    data = ("--images", tiny.images, "--annotations", tiny.annotations, "--cache", "c")
    made = call("extract", "--detector", "hf:model", *data)
    assert made.exit_code == 0, made.output
    words = shlex.split(Cache(tmp_path / "c").spec.recipe["command"])
    assert words[words.index("--detector") + 1] == f"hf:{tmp_path / 'model'}"
    assert "--weights" not in words
    versions: Any = Cache(tmp_path / "c").spec.recipe["versions"]
    assert {"torch", "transformers"} <= set(versions)
    assert call("train", "--cache", "c", "--head", "baseline", "--run", "r").exit_code == 0
    predicted = call(
        "predict", "--detector", "hf:model", "--run", "r", "--images", tiny.images, "--out", "out", "--min-score", 0.1
    )
    assert predicted.exit_code == 0, predicted.output
    refused = call("extract", "--detector", "hf:model", "--weights", tiny.weights, *data)
    assert refused.exit_code == 2
    assert "leave out --weights" in refused.stderr
    missing = call("extract", "--detector", tiny.toml, *data)
    assert missing.exit_code == 1
    assert missing.stderr == "error: 'tiny' needs its weights\nhint: pass them: --weights FILE\n"


def test_detectors_are_listed_as_json_too() -> None:
    cards = {card["name"]: card for card in json.loads(call("detectors", "--json").stdout)}
    table = {line.split()[0]: line for line in call("detectors").stdout.splitlines()}
    assert set(table) == {"name", *cards}
    assert cards["hdetr-r50"]["levels"] == ["c1", "e8", "e16", "e32", "e64"]
    assert (cards["hdetr-r50"]["backbone"], cards["hdetr-r50"]["queries"]) == ("resnet50", 300)
    assert "47.56 M" in table["hdetr-r50"]
    assert f"{cards['hdetr-r50']['box_ap']:.1f}" in table["hdetr-r50"]
    assert table["hdetr-r50"].endswith(cards["hdetr-r50"]["weights"])
    assert table["shapes-tiny"].endswith("shapes-tiny.safetensors (in the package)")
    assert " - " in table["deimv2-femto"]


FIGURES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def test_keys_of_json_stay_as_scripts_know_them(tiny: Tiny, tmp_path: Path) -> None:
    """And the help of each command names them."""
    extract(tiny, tmp_path / "c")
    result = call("evaluate", "--cache", tmp_path / "c", "--run", tmp_path / "r", "--reference", "box", "--json")
    metrics = json.loads(result.stdout)
    boundary = ["boundary"] if boundary_known() else []
    assert [*metrics] == ["segm", "bbox", *boundary, "mask_iou", "matched", "images"]
    assert [*metrics["segm"]] == [*metrics["bbox"]] == FIGURES
    words = ("evaluate", "--cache", tmp_path / "c", "--run", tmp_path / "r", "--reference", "box")
    classes = json.loads((tmp_path / "r" / "metrics" / "per_class.json").read_text())
    assert json.loads(call(*words, "--json", "--per-class").stdout) == {**metrics, "classes": classes}
    cost = json.loads(call("describe", "--head", "unet", "--detector", "hdetr-r50", "--json").stdout)
    assert [*cost] == ["name", "params", "macs", "parts"]
    assert [*cost["parts"]["roi_align"]] == ["params", "macs"]
    cards, heads = (json.loads(call(command, "--json").stdout) for command in ("detectors", "heads"))
    assert {tuple(card) for card in cards} == {
        ("name", "kind", "summary", "backbone", "levels", "queries", "parameters", "weights", "embedded", "box_ap")
    }
    assert {tuple(head) for head in heads} == {("name", "family", "about")}
    assert "unet" in {head["name"] for head in heads}
    for command, keys in (
        ("evaluate", [*metrics, *FIGURES]),
        ("describe", [*cost]),
        ("detectors", [*cards[0]]),
        ("heads", [*heads[0]]),
        ("export", ["file", "difference", "checks", "free_maps"]),  # pinned in tests/test_export.py
    ):
        words = set(re.findall(r"\w+", call(command, "--help").stdout))
        assert not set(keys) - words, command


def test_errors_are_one_sentence_and_a_hint(tiny: Tiny, tmp_path: Path) -> None:
    tiny.toml.write_text(tiny.toml.read_text().replace("/e8/out", "/e8/ou"))
    result = extract(tiny, tmp_path / "c")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert (
        result.stderr
        == f"error: {tiny.weights} has no tensor '/e8/ou'\nhint: nearest: '/e8/out', '/e16/out', '/c1/out'\n"
    )


def test_errors_of_the_cache_are_told_the_same_way(tmp_path: Path) -> None:
    result = call("evaluate", "--cache", tmp_path / "none", "--run", tmp_path / "r", "--reference", "box")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_unreadable_images_make_the_status_1(tiny: Tiny, tmp_path: Path) -> None:
    sorted(tiny.images.iterdir())[0].write_bytes(b"")
    result = extract(tiny, tmp_path / "c")
    assert result.exit_code == 1
    assert "error: 1 images could not be read" in result.stderr


def test_misuse_has_status_2(tiny: Tiny, tmp_path: Path) -> None:
    assert call("extract").exit_code == 2
    assert call("extrct").exit_code == 2
    assert extract(tiny, tmp_path / "c", "--codec", "jpeg").exit_code == 2
    for more in (("--views", "orig,vflip"), ("--shard", "3/2")):
        result = extract(tiny, tmp_path / "c", *more)
        assert result.exit_code == 2
        assert "hint: " in result.stderr
    assert call("train", "--cache", "c", "--head", "unet", "--run", "r", "steps").exit_code == 2


def test_tracebacks_only_with_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.detectors.listing.list_detectors", lambda: 1 / 0)
    quiet, loud = call("detectors"), call("--debug", "detectors")
    assert quiet.exit_code == loud.exit_code == 1
    assert "error: unexpected ZeroDivisionError: division by zero" in quiet.stderr
    assert "--debug" in quiet.stderr
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


def test_listings_have_a_line_for_each_name() -> None:
    for command, names in (("detectors", ["deimv2-femto", "deimv2-atto"]), ("heads", ["mask-frozen-detr", "baseline"])):
        lines = call(command).stdout.splitlines()
        for name in names:
            (line,) = (line for line in lines if line.split()[0] == name)
            assert len(line.split()) > 3


def test_help_does_not_wait_for_torch() -> None:
    script = "import sys, pipeline.cli; sys.exit(bool({'torch', 'zarr', 'pycocotools'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[1]).returncode == 0
