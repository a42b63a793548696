import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache import Cache, checks, maintain, progress
from featcache.progress import Progress
from featcache.stats import level_statistics


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, in a list that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_few_seconds_and_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "images", every_seconds=5) as counter:
        for second in range(1, 11):
            clock[0] = 100.0 + 2 * second
            counter.update(1, "3 MB/s")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "3/10 images, 0.5 images/s, ETA 0:00:14, 3 MB/s"
    assert lines[-1] == "10/10 images, 0.5 images/s, 3 MB/s"
    assert len(lines) == 4


def test_a_run_that_goes_on_counts_its_own_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, "steps", done=90) as counter:
        clock[0] = 110.0
        counter.update(5)
    assert capsys.readouterr().err == "95/100 steps, 0.5 steps/s, ETA 0:00:10\n"


def test_facts_stay_until_others_come(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, "steps", every_seconds=0) as counter:
        for facts in ("loss 2", "", "loss 1"):
            clock[0] += 1
            counter.update(1, facts)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(", ")[2] for line in lines] == ["loss 2", "loss 2", "loss 1"]


def test_work_on_bytes_tells_speed_and_space(clock: list[float], tmp_path: Path) -> None:
    assert progress.read(3 * 10**9, 2.0) == "1500.0 MB/s, 3.00 GB read"
    speed, gigabytes, free = progress.written(tmp_path, 50_000_000, 10.0).split(", ")
    assert (speed, gigabytes) == ("5.0 MB/s", "0.05 GB written")
    assert float(free.removesuffix(" GB free")) >= 0


def test_every_command_that_reads_or_writes_a_cache_shows_its_speed(
    make_cache: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On its last line, which is printed however short the work was."""
    cache, part = Cache(make_cache(3, name="a")), Cache(make_cache(3, name="b", order=[1]))
    work: dict[str, Callable[[], object]] = {
        "read": lambda: checks.verify(cache.path, deep=True),
        "read again": lambda: checks.diff(cache, cache),
        "read at last": lambda: level_statistics(cache),
        "written": lambda: maintain.run(maintain.plan_copy(cache, tmp_path / "copied", codec="fp16")),
        "written too": lambda: maintain.run(maintain.plan_merge([cache, part], tmp_path / "merged")),
    }
    for what, run in work.items():
        run()
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("3/3 images, "), what
        assert f"MB/s, 0.00 GB {what.split()[0]}" in line


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(2, "images") as counter:
        counter.update(2, "9 GB free")
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "9 GB free" in shown
