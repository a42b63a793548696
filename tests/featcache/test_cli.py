"""The command line: exit codes, pinned JSON keys, help with an example for every command."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from featcache.cli import app, main

Maker = Callable[..., Path]
COMMANDS = sorted(get_command(app).commands)  # pyright: ignore


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run("info", path) -> (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["featcache", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def json_of(result: tuple[int, str, str], code: int = 0) -> Any:
    assert result[0] == code, result[2]
    return json.loads(result[1])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run: Callable[..., Any], command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example:  featcache {command} " in out


def test_help_does_not_import_torch_or_zarr() -> None:
    program = (
        "import sys; sys.argv = ['featcache', '--help']\n"
        "from featcache.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'zarr', 'numpy'} & set(sys.modules), 'imported too early'"
    )
    assert (
        "verify" in subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    )


def test_info(run: Callable[..., Any], make_cache: Maker) -> None:
    path = make_cache(3, order=[0, 2])
    data = json_of(run("info", path, "--json"))
    assert list(data) == [
        *(
            "path",
            "format_version",
            "fingerprint",
            "source_fingerprint",
            "codec",
            "shard",
            "images",
            "done",
            "complete",
        ),
        *("annotations", "detections", "query_dim", "levels", "bytes", "files", "bytes_per_image"),
        *("source", "dataset", "recipe"),
    ]
    assert (data["done"], data["complete"], data["annotations"]) == ({"orig": 2}, False, 3)
    assert list(data["levels"][0]) == ["name", "stride", "channels", "max_h", "max_w", "delta"]
    code, out, _ = run("info", path)
    assert code == 0
    assert "orig 2/3" in out
    assert "source.name" in out


def test_ls(run: Callable[..., Any], make_cache: Maker) -> None:
    path = make_cache(3, order=[0, 2])
    rows = json_of(run("ls", path, "--json"))
    assert rows[1] == {
        "index": 1,
        "image_id": 101,
        "height": 31,
        "width": 40,
        "annotations": 1,
        "done_orig": False,
        "file_name": "bild-1-ä.jpg",
    }
    assert [row["image_id"] for row in json_of(run("ls", path, "--missing", "--json"))] == [101]
    assert len(json_of(run("ls", path, "--limit", 2, "--json"))) == 2
    assert run("ls", path)[1].splitlines()[0].split()[:2] == ["index", "image_id"]


def test_show(run: Callable[..., Any], make_cache: Maker, tmp_path: Path) -> None:
    path, out = make_cache(3), tmp_path / "sheet.png"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (40, 32), "blue").save(pictures / "bild-2-ä.jpg")
    data = json_of(run("show", path, 102, "--out", out, "--images", pictures, "--min-score", 0, "--json"))
    keys = [
        "image_id",
        "index",
        "view",
        "file_name",
        "image_hw",
        "input_hw",
        "detections",
        "annotations",
        "maps",
        "out",
    ]
    assert list(data) == keys
    assert list(data["maps"][0]) == ["level", "h", "w", "min", "max", "mean", "std"]
    assert list(data["detections"][0]) == ["label", "score", "box_cxcywh"]
    assert data["detections"][0]["label"] == "cat"
    assert list(data["annotations"][0]) == ["id", "category", "box_xywh", "crowd"]
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet)
    assert pixels[200, 5].tolist()[2] > 200  # the blue picture stands first
    run("show", path, 102, "--out", out)  # no picture known: the maps alone
    with Image.open(out) as sheet:
        assert sheet.width < pixels.shape[1]
    assert "box_cxcywh" in run("show", path, 102, "--min-score", 0)[1]


def test_verify_exit_codes_and_repair(run: Callable[..., Any], make_cache: Maker) -> None:
    path = make_cache(3)
    data = json_of(run("verify", path, "--deep", "--json"))
    keys = ["good", "deep", "images", "done", "checked", "problems", "damage", "marked", "repair"]
    assert list(data) == keys
    file = path / "views/orig/maps/c1/c.1.0.0"
    file.write_bytes(file.read_bytes()[:-1])
    code, out, _ = run("verify", path, "--deep")
    assert code == 1
    assert "damaged: image 101, view orig, c1: checksum does not match" in out
    assert f"repair:  featcache verify {path} --deep --images 101 --repair && python -m pipeline extract" in out
    assert json_of(run("verify", path, "--deep", "--json"), code=1)["damage"][0] == {
        "image_id": 101,
        "view": "orig",
        "level": "c1",
        "what": "checksum does not match",
    }
    code, out, _ = run("verify", path, "--deep", "--images", "101", "--repair")
    assert code == 0
    assert "marked 1 as not done" in out
    assert json_of(run("ls", path, "--missing", "--json"))[0]["image_id"] == 101
    assert run("verify", path, "--deep")[0] == 0


def test_diff(run: Callable[..., Any], make_cache: Maker) -> None:
    a, b = make_cache(2, name="a"), make_cache(2, name="b", codec="fp16")
    assert run("diff", a, a)[0] == 0
    data = json_of(run("diff", a, b, "--json"), code=1)
    assert list(data) == ["equal", "identity", "only_in_a", "only_in_b", "compared", "values"]
    assert data["identity"] == [["codec", "uint8", "fp16"]]
    code, out, _ = run("diff", a, b)
    assert code == 1
    assert "codec: 'uint8' in A, 'fp16' in B" in out


def test_failures_are_one_sentence_and_a_hint(run: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = run("info", tmp_path / "absent")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == f"error: no cache at {tmp_path / 'absent'}"
    assert len(err.splitlines()) == 2
    assert "Traceback" not in err


def test_misuse_exits_with_two(run: Callable[..., Any], make_cache: Maker) -> None:
    assert run("verify")[0] == 2
    assert run("nonsense")[0] == 2
    assert run("verify", make_cache(1), "--images", "abc")[0] == 2


def test_debug_gives_the_traceback_wherever_it_stands(run: Callable[..., Any], tmp_path: Path) -> None:
    for words in (("--debug", "info"), ("info", "--debug")):
        code, out, err = run(*words, tmp_path / "absent")
        assert (code, out) == (1, "")
        assert "Traceback" in err
        assert f"error: no cache at {tmp_path / 'absent'}" in err


def test_ctrl_c_is_told_in_words(run: Callable[..., Any], make_cache: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featcache.stats.level_statistics", lambda *_, **__: pressed(None))
    assert run("stats", make_cache(1)) == (1, "", "error: stopped by Ctrl-C\nhint: run the same command again\n")


def test_estimate(run: Callable[..., Any], make_cache: Maker, tmp_path: Path) -> None:
    sample = make_cache(3)
    data = json_of(run("estimate", sample, "--images", 50, "--at", tmp_path, "--json"))
    assert list(data) == [
        *("images", "views", "codec", "shard", "bytes_per_image", "total_bytes", "files", "free_bytes"),
        *("images_per_second", "hours", "fits"),
    ]
    code, out, err = run("estimate", sample, "--images", 10**13, "--at", tmp_path, "--no-probe")
    assert code == 0
    assert "more than 90% of the free space" in err
    assert "10000000000000 in 1 views" in out


def test_stats(run: Callable[..., Any], make_cache: Maker) -> None:
    data = json_of(run("stats", make_cache(2), "--json"))
    assert list(data) == ["c1", "e16"]
    assert list(data["c1"]) == [
        *("count", "min", "max", "mean", "std", "zeros", "histogram_low", "histogram_high", "histogram")
    ]
    assert "█" in run("stats", make_cache(2))[1]


def test_copy_merge_prune(run: Callable[..., Any], make_cache: Maker, tmp_path: Path) -> None:
    part1, part2 = make_cache(3, name="p1", order=[0]), make_cache(3, name="p2", order=[2, 1])
    keys = ["dry_run", "target", "images", "done", "levels", "codec", "shard", "fingerprint"]
    merged, small = tmp_path / "merged", tmp_path / "small"
    assert list(json_of(run("merge", part1, part2, "--into", merged, "--dry-run", "--json"))) == keys
    assert not merged.exists()
    assert json_of(run("merge", part1, part2, "--into", merged, "--json"))["done"] == {"orig": 3}
    assert list(json_of(run("copy", merged, small, "--images", "100,102", "--dry-run", "--json"))) == keys
    assert json_of(run("copy", merged, small, "--images", "100,102", "--json"))["images"] == 2
    assert json_of(run("prune", merged, "--levels", "e16", "--dry-run", "--json"))["levels"] == ["e16"]
    assert len(json_of(run("info", merged, "--json"))["levels"]) == 2
    assert json_of(run("prune", merged, "--levels", "e16", "--yes", "--json"))["dry_run"] is False
    assert len(json_of(run("info", merged, "--json"))["levels"]) == 1
    assert run("prune", merged)[0] == 2
    assert run("copy", merged, small, "--codec", "zip")[0] == 2
    assert run("copy", merged, small)[0] == 1
