"""`verify` names what is damaged and prints the command that repairs it, original or copy; the command does."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cache_toy import flip_byte, json_of

from featcache import CacheError
from featcache.files import TEMPORARY_SUFFIX, replace_file

Maker = Callable[..., Path]


def test_verify_exit_codes_and_repair(run: Callable[..., Any], make_cache: Maker) -> None:
    path = make_cache(3)
    data = json_of(run("verify", path, "--deep", "--json"))
    keys = ["good", "deep", "images", "done", "checked", "problems", "damage", "remedy", "marked", "repair"]
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


@pytest.mark.parametrize("option", ["--cache 'old place'", "--cache='old place'"])
def test_the_command_names_the_cache_where_it_is_now(
    run: Callable[..., Any], make_cache: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Moved or copied by hand, or called by a relative name: the command that made it would write somewhere else."""
    monkeypatch.chdir(tmp_path)
    extract = "python -m pipeline extract --images 'a b' {} --shard 1/2"
    shutil.move(make_cache(3, recipe={"command": extract.format(option)}), "new place")
    shutil.copytree("new place", "second")
    for name in ("new place", "second"):
        expected = extract.format(f"--cache {shlex.quote(str(tmp_path / name))}")
        flip_byte(tmp_path / name / "views/orig/maps/e16/c.1.0.0", 3)
        repair = json_of(run("verify", name, "--deep", "--json"), code=1)["repair"]
        assert repair == f"featcache verify {shlex.quote(name)} --deep --images 101 --repair && {expected}"
        assert f"now this does them again:\n  {expected}\n" in run("verify", name, "--deep", "--repair")[1]
        assert json_of(run("info", name, "--json"))["command"] == expected
        assert f"  {expected}\n" in run("info", name)[1]


COPIES = {
    "all of it": [],
    "some images, levels and views": ["--images", "100,101,104", "--levels", "e16", "--views", "hflip"],
    "another codec": ["--codec", "uint8", "--max-error", "0.01"],
}


@pytest.mark.parametrize("kind", COPIES)
def test_the_command_that_verify_prints_repairs_a_copy(
    run: Callable[..., Any], make_cache: Maker, tmp_path: Path, kind: str
) -> None:
    """From its source, whatever it leaves out and however it is coded, and under a name that it was given later."""
    source = make_cache(5, codec="none", views=("orig", "hflip"), shard=2)
    first, copied, sound = tmp_path / "first", tmp_path / "small copy", tmp_path / "sound"
    for target in (first, sound):
        assert run("copy", source, target, *COPIES[kind])[0] == 0
    first.rename(copied)
    flip_byte(copied / "views/hflip/maps/e16/c.0.0.0", 3)
    code, out, _ = run("verify", copied, "--deep")
    assert code == 1
    command = out.splitlines()[-1].removeprefix("repair:  ")
    assert command.endswith(f" --repair && featcache copy {source} '{copied}' --missing")
    for part in command.split(" && "):
        assert run(*shlex.split(part)[1:])[0] == 0
    assert run("verify", copied, "--deep")[:2] == (0, run("verify", sound, "--deep")[1])
    assert run("diff", copied, sound)[0] == 0


@pytest.mark.parametrize("kind", ["copy", "prune"])
def test_a_copy_without_its_source_is_repaired_from_another_extraction(
    run: Callable[..., Any], make_cache: Maker, tmp_path: Path, kind: str
) -> None:
    command, path = "python -m pipeline extract --images 'a b' --cache X", tmp_path / "path"
    source = make_cache(3, recipe={"command": command})
    if kind == "copy":
        assert run("copy", source, path, "--levels", "e16")[0] == 0
        shutil.rmtree(source)
    else:
        assert run("prune", source, "--levels", "e16", "--yes")[0] == 0
        source.rename(path)
    flip_byte(path / "views/orig/maps/e16/c.1.0.0", 3)
    extract, copy = command.replace("X", f"{path}.again"), f"featcache copy {path}.again {path} --missing"
    repair = json_of(run("verify", path, "--deep", "--json"), code=1)["repair"]
    assert repair == f"featcache verify {path} --deep --images 101 --repair && {extract} && {copy}"
    assert run("verify", path, "--deep", "--repair")[0] == 0
    make_cache(3, name="path.again")
    assert run(*shlex.split(copy)[1:])[0] == 0
    assert json_of(run("verify", path, "--deep", "--json"))["done"] == {"orig": 3}


@pytest.mark.parametrize("name", ["kept", f"kept{TEMPORARY_SUFFIX}"])
def test_a_directory_in_the_way_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    """Also in that of the name under which a file is written before it has its own."""
    (tmp_path / name).mkdir()
    with pytest.raises(CacheError, match=f"{tmp_path / name} is a directory, and a file of the cache belongs there"):
        replace_file(tmp_path / "kept", b"bytes")
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("shard", [1, 2])
@pytest.mark.parametrize("name", ["maps/e16/c.0.0.0", "boxes/c.0.0.0"])
def test_a_directory_in_place_of_a_file_is_told_of_and_not_removed(
    run: Callable[..., Any], make_cache: Maker, tmp_path: Path, name: str, shard: int
) -> None:
    source, copied = make_cache(3, shard=shard), tmp_path / "a copy"
    assert run("copy", source, copied)[0] == 0
    file = copied / "views/orig" / name
    file.unlink()
    file.mkdir()
    (file / "notes").write_text("somebody's")
    mark, fill = run("verify", copied, "--deep")[1].splitlines()[-1].removeprefix("repair:  ").split(" && ")
    assert run(*shlex.split(mark)[1:])[0] == 0
    code, _, err = run(*shlex.split(fill)[1:])
    assert code == 1
    assert f"error: {file} is a directory, and a file of the cache belongs there\nhint: look what is in it" in err
    assert err.endswith(f"again:  rm -r '{file}'\n")
    assert [one.name for one in file.iterdir()] == ["notes"]
    shutil.rmtree(file)
    assert run(*shlex.split(fill)[1:])[0] == 0
    assert run("diff", source, copied)[0] == run("verify", copied, "--deep")[0] == 0


def test_missing_takes_everything_from_a_copy(run: Callable[..., Any], make_cache: Maker, tmp_path: Path) -> None:
    source, other = make_cache(3, order=[0, 2]), make_cache(3, name="other", source={"name": "other"})
    assert run("copy", source, tmp_path / "copy")[0] == 0
    make_cache(3)  # the source goes on
    assert json_of(run("copy", source, tmp_path / "copy", "--missing", "--dry-run", "--json"))["done"] == {"orig": 1}
    assert run("copy", source, tmp_path / "copy", "--missing")[0] == 0
    assert run("diff", source, tmp_path / "copy")[0] == 0
    code, _, err = run("copy", other, tmp_path / "copy", "--missing")
    assert code == 1
    assert "copy is no copy of" in err
    assert "source.name: 'toy', and 'other' of such a copy" in err
    code, _, err = run("copy", source, tmp_path / "copy", "--missing", "--codec", "fp16")
    assert code == 2
    assert "--missing takes codec" in err
