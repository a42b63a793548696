"""The command line: exit codes, pinned JSON keys, help with an example for every command."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_toy import json_of, make_features, make_images, make_spec, make_truth
from PIL import Image

from featcache import Cache, CacheWriter
from featcache.disk import disk_usage
from featcache.lock import living_writer

Maker = Callable[..., Path]


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
        *("path", "format_version", "fingerprint", "source_fingerprint", "codec", "max_error", "shard"),
        *("images", "done"),
        *("complete", "part", "part_complete", "writer", "images_per_second", "eta_seconds"),
        *("annotations", "further_truth", "detections", "query_dim"),
        *("levels", "bytes", "files", "bytes_per_image", "raw_fp16_bytes", "ratio", "source", "dataset", "recipe"),
        "command",
    ]
    assert (data["done"], data["complete"], data["annotations"]) == ({"orig": 2}, False, 3)
    assert (data["writer"], data["eta_seconds"]) == (None, None)
    cache = Cache(path)
    raw = {level.name: sum(2 * cache[i].maps[level.name].numel() for i in (0, 2)) for level in cache.spec.levels}
    assert data["raw_fp16_bytes"] == sum(raw.values())
    assert data["ratio"] == data["bytes"] / data["raw_fp16_bytes"]
    assert (data["bytes"], data["files"]) == disk_usage(path)
    level = data["levels"][0]
    assert list(level) == [
        *("name", "stride", "channels", "max_h", "max_w", "dtype", "codec", "bytes", "ratio", "delta")
    ]
    assert (level["dtype"], level["codec"], level["bytes"]) == (
        "uint8",
        "uint8",
        disk_usage(path / "views/orig/maps/c1")[0],
    )
    assert level["ratio"] == level["bytes"] / raw["c1"]
    code, out, _ = run("info", path)
    assert code == 0
    assert "orig 2/3" in out
    assert "source.name" in out
    assert "unfinished, and no process writes it" in out
    assert "complete" in run("info", make_cache(1, name="whole"))[1]


def test_info_of_a_cache_that_is_being_written_tells_how_long_it_will_take(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten of thirty images in the ten seconds since the writer began, which two runs before had begun."""
    path, count = tmp_path / "cache", 30
    with CacheWriter(path, make_spec(), make_images(count), make_truth(count), shard=1) as writer:
        for index in range(5):
            writer.put(index, "orig", **make_features(index))
    for file in (path / "views/orig/maps").rglob("c.*"):
        os.utime(file, (1, 1))  # of an earlier run
    with CacheWriter(path, make_spec(), make_images(count), make_truth(count)) as writer:
        for index in range(5, 15):
            writer.put(index, "orig", **make_features(index))
        writer.flush()
        since = datetime.fromisoformat(json_of(run("info", path, "--json"))["writer"]["since"]).timestamp()
        monkeypatch.setattr("featcache.summary.time.time", lambda: since + 10)
        data = json_of(run("info", path, "--json"))
        assert data["writer"]["pid"] == os.getpid()
        assert (data["images_per_second"], data["eta_seconds"]) == (1.0, 15.0)
        assert f"being written by process {os.getpid()}" in run("info", path)[1]
        assert "1.0 images/s, ETA 0:00:15" in run("info", path)[1]
    assert json_of(run("info", path, "--json"))["writer"] is None


def test_info_of_a_part_counts_what_is_left_of_the_part(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images 10 to 19 of thirty, five of them done in ten seconds; and the whole cache that a merge makes of it."""
    path = tmp_path / "cache"
    spec = replace(make_spec(), recipe={"part": [10, 20]})
    with CacheWriter(path, spec, make_images(30), make_truth(30), shard=1) as writer:
        for index in range(10, 15):
            writer.put(index, "orig", **make_features(index))
        writer.flush()
        since = datetime.fromisoformat(json_of(run("info", path, "--json"))["writer"]["since"]).timestamp()
        monkeypatch.setattr("featcache.summary.time.time", lambda: since + 10)
        data = json_of(run("info", path, "--json"))
        assert (data["images_per_second"], data["eta_seconds"]) == (0.5, 10.0)
        assert (data["part"], data["part_complete"]) == ([10, 20], False)
        for index in range(15, 20):
            writer.put(index, "orig", **make_features(index))
    data = json_of(run("info", path, "--json"))
    assert (data["part_complete"], data["complete"]) == (True, False)
    assert "images 10 to 19, its --shard, are complete: featcache merge joins the parts" in run("info", path)[1]
    with CacheWriter(path, spec, make_images(30), make_truth(30)) as writer:  # without --shard after all
        writer.put(3, "orig", **make_features(3))
    data = json_of(run("info", path, "--json"))
    assert (data["part"], data["part_complete"]) == (None, False)
    assert run("merge", path, "--into", tmp_path / "merged")[0] == 0
    assert "part" not in json_of(run("info", tmp_path / "merged", "--json"))["recipe"]


def test_a_writer_that_died_is_not_waited_for(make_cache: Maker) -> None:
    path = make_cache(1)
    lock = path / "writer/zarr.json"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    holder = {"pid": process.pid, "host": socket.gethostname(), "since": "2026-01-01T00:00:00+00:00"}
    lock.write_text(json.dumps({"attributes": holder}))
    assert living_writer(path) is None
    lock.write_text(json.dumps({"attributes": {**holder, "host": "another"}}))
    assert living_writer(path) == {**holder, "host": "another"}


def test_info_does_not_import_torch_or_zarr(make_cache: Maker) -> None:
    program = (
        f"import sys; sys.argv = ['featcache', 'info', {str(make_cache(1))!r}]\n"
        "from featcache.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'zarr'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_ls(run: Callable[..., Any], make_cache: Maker) -> None:
    path = make_cache(3, order=[0, 2])
    rows = json_of(run("ls", path, "--json"))
    assert rows[1] == {
        "index": 1,
        "image_id": 101,
        "height": 31,
        "width": 40,
        "annotations": 1,
        "boxes": None,
        "score": None,
        "done_orig": False,
        "categories": ["cat"],
        "file_name": "bild-1-ä.jpg",
    }
    scores = Cache(path)[2].scores
    assert rows[2]["score"] == pytest.approx(float(scores.max()), abs=1e-3)
    assert [row["image_id"] for row in json_of(run("ls", path, "--missing", "--json"))] == [101]
    assert len(json_of(run("ls", path, "--limit", 2, "--json"))) == 2
    assert run("ls", path)[1].splitlines()[0].split()[:2] == ["index", "image_id"]
    for least in (0.0, 0.5, 1.0):
        row = json_of(run("ls", path, "--min-score", least, "--json"))[2]
        assert row["boxes"] == int((scores >= least).sum())


def test_ls_filters_sorts_and_limits(run: Callable[..., Any], make_cache: Maker) -> None:
    path = make_cache(6, order=[0, 1, 2, 3, 4])  # image i has i % 3 annotations, the last one is not extracted

    def ids(*words: object) -> list[int]:
        return [row["image_id"] - 100 for row in json_of(run("ls", path, *words, "--json"))]

    assert ids("--filter", "annotations>=1") == [1, 2, 4, 5]
    assert ids("--filter", "annotations > 0", "--filter", "height!=31") == [2, 4, 5]
    assert ids("--filter", "categories~CA", "--filter", "done_orig=true") == [1, 2, 4]
    assert ids("--filter", "categories!=cat") == [0, 3]
    assert ids("--filter", "file_name~bild-3") == [3]
    assert ids("--filter", "boxes>=0") == [0, 1, 2, 3, 4]
    assert ids("--sort", "-annotations", "--limit", 3) == [2, 5, 1]
    assert ids("--sort", "score")[-1] == 5
    assert ids("--sort", "-score")[-1] == 5
    code, out, err = run("ls", path, "--filter", "height>1000")
    assert (code, out, err) == (0, "", "no such image\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--filter", "boxs>1"),
            "error: there is no field 'boxs'\nhint: did you mean 'boxes'? fields: index, image_id, ",
        ),
        (("--sort", "-heihgt"), "error: there is no field 'heihgt'\nhint: did you mean 'height'? fields: index"),
        (("--filter", "boxes"), "error: 'boxes' is no filter: it needs a field, one of = != < <= > >= ~, and a value"),
        (("--filter", "boxes>many"), "error: 'boxes' is compared with 'many', expected a number"),
        (("--filter", "height~3"), "error: 'height' is no text, ~ cannot be asked of it"),
        (("--filter", "done_orig=maybe"), "error: 'done_orig' is compared with 'maybe', expected true or false"),
    ],
)
def test_a_filter_that_cannot_be_is_misuse(
    run: Callable[..., Any], make_cache: Maker, words: tuple[str, ...], message: str
) -> None:
    code, out, err = run("ls", make_cache(2), *words)
    assert (code, out) == (2, "")
    assert err.startswith(message)


@pytest.mark.parametrize("words", [("--filter", "id=3"), ("--sort", "-id")])
def test_an_unknown_field_is_misuse_where_no_row_is_left_too(
    run: Callable[..., Any], make_cache: Maker, words: tuple[str, ...]
) -> None:
    for more in (("--missing",), ("--filter", "height>1000")):
        code, out, err = run("ls", make_cache(2), *more, *words)
        assert (code, out) == (2, "")
        assert err.startswith("error: there is no field 'id'\nhint: did you mean ")


def test_a_filter_of_texts_finds_nothing_among_nothing(run: Callable[..., Any], make_cache: Maker) -> None:
    words = ("--filter", "height>1000", "--filter", "categories~dog", "--filter", "file_name=x")
    assert run("ls", make_cache(2), *words) == (0, "", "no such image\n")


def test_an_error_for_a_codec_that_adds_none_is_misuse(
    run: Callable[..., Any], make_cache: Maker, tmp_path: Path
) -> None:
    exact = make_cache(2, codec="none")
    message = "error: max-error 0.01 is of codec uint8, and the codec here is {}\nhint: leave --max-error out"
    for words, codec in (
        (("copy", exact, tmp_path / "new", "--codec", "fp16"), "fp16"),
        (("copy", exact, tmp_path / "new"), "none"),
        (("estimate", exact, "--images", 9, "--at", tmp_path, "--codec", "fp16"), "fp16"),
    ):
        code, _, err = run(*words, "--max-error", 0.01)
        assert code == 2
        assert message.format(codec) in err
    assert not (tmp_path / "new").exists()
    assert run("copy", exact, tmp_path / "new", "--codec", "fp16", "--max-error", 0)[0] == 0


def test_show_refuses_what_it_cannot_draw(run: Callable[..., Any], make_cache: Maker, tmp_path: Path) -> None:
    path, out = make_cache(2, recipe={"images_folder": "/nonexistent"}), tmp_path / "sheet.png"
    code, _, err = run("show", path, 101, "--out", out, "--images", tmp_path / "absent")
    assert code == 1
    assert f"error: {tmp_path / 'absent/bild-1-ä.jpg'} is not there" in err
    (tmp_path / "bild-1-ä.jpg").write_bytes(b"no picture")
    code, _, err = run("show", path, 101, "--out", out, "--images", tmp_path)
    assert code == 1
    assert f"error: {tmp_path / 'bild-1-ä.jpg'} does not read as a picture" in err
    code, _, err = run("show", path, 101, "--images", tmp_path)
    assert code == 2
    assert "--out" in err
    code, out_words, err = run("show", path, 101, "--out", tmp_path / "sheet.xyz")
    assert (code, out_words) == (2, "")
    assert err.startswith(f"error: no picture can be written as '{tmp_path / 'sheet.xyz'}': unknown ending '.xyz'")
    assert not out.exists()
    code, _, err = run("show", path, 101, "--out", out)
    assert (code, err) == (0, "warning: the picture is not where it was, so maps are drawn alone (--images FOLDER)\n")
    assert out.exists()


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
    assert pixels[300, 300].tolist()[2] > 200  # the blue picture stands first
    run("show", path, 102, "--out", out)  # no picture known: the maps alone
    with Image.open(out) as sheet:
        assert sheet.height < pixels.shape[0] or sheet.width < pixels.shape[1]
    run("show", path, 102, "--out", out, "--images", pictures, "--min-score", 1)  # other boxes are another sheet
    with Image.open(out) as sheet:
        assert not np.array_equal(np.asarray(sheet), pixels)
    assert "box_cxcywh" in run("show", path, 102, "--min-score", 0)[1]


def test_diff(run: Callable[..., Any], make_cache: Maker) -> None:
    a, b = make_cache(2, name="a"), make_cache(2, name="b", codec="fp16")
    assert run("diff", a, a)[0] == 0
    data = json_of(run("diff", a, b, "--json"), code=1)
    assert list(data) == ["equal", "identity", "only_in_a", "only_in_b", "compared", "values"]
    assert data["identity"] == [["codec", "uint8", "fp16"], ["max_error", 0.006, None]]
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
        *("count", "min", "max", "mean", "std", "zeros", "histogram_low", "histogram_high", "histogram"),
        *("steps_min", "steps_max", "rounding"),
    ]
    assert json_of(run("stats", make_cache(2, name="fp16", codec="fp16"), "--json"))["c1"]["steps_max"] is None
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
