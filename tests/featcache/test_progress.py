import sys

import pytest

from featcache import progress
from featcache.progress import Progress


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


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(2, "images") as counter:
        counter.update(2, "9 GB free")
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "9 GB free" in shown
