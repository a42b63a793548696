"""Batches reach the cache in order, on a GPU beside the next detection, and no error is lost."""

import threading
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from pretend_gpu import pretended

from featcache import CacheWriter
from pipeline.detectors.base import Features
from pipeline.handover import Handover

DEVICES = ["cpu", "cuda"]


@dataclass
class Writer:
    """Notes what it is given, and in which thread."""

    refuse: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    put_: list[tuple[int, float, tuple[int, int]]] = field(default_factory=list[tuple[int, float, tuple[int, int]]])
    threads: set[str] = field(default_factory=set[str])

    def put(self, index: int, view: str, *, maps: Any, input_hw: tuple[int, int], **rest: Any) -> None:
        assert self.go_on.wait(60)
        if index == self.refuse:
            raise ValueError(f"image {index} is refused")
        self.threads.add(threading.current_thread().name)
        self.put_.append((index, float(maps["c1"][0, 0, 0]), input_hw))


def features(indices: list[int], device: str) -> Features:
    """Each image's map holds its index."""
    b = len(indices)
    return Features(
        maps={"c1": torch.tensor(indices, dtype=torch.float32)[:, None, None, None].expand(b, 2, 3, 3).to(device)},
        encoder=(),
        strides={"c1": 4},
        queries=torch.zeros(b, 1, 2).to(device),
        boxes=torch.zeros(b, 1, 4).to(device),
        scores=torch.zeros(b, 1).to(device),
        labels=torch.zeros(b, 1, dtype=torch.int64).to(device),
        input_hw=torch.tensor([[10 + index, 20] for index in indices]).to(device),
    )


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    with pretended(monkeypatch):
        yield request.param


def handover(writer: Writer) -> Handover:
    return Handover(cast(CacheWriter, writer))


def test_all_are_put_in_order(device: str) -> None:
    writer = Writer()
    writer.go_on.set()
    with handover(writer) as given:
        for batch in ([0, 1], [2], [3, 4]):
            given.give("orig", batch, features(batch, device))
    assert writer.put_ == [(index, float(index), (10 + index, 20)) for index in range(5)]
    assert writer.threads == ({"MainThread"} if device == "cpu" else {"handover_0"})


def test_on_a_gpu_one_batch_is_put_while_the_next_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    writer, second = Writer(), threading.Event()
    with pretended(monkeypatch), handover(writer) as given:
        given.give("orig", [0], features([0], "cuda"))  # returns, though nothing can be put yet
        batch = features([1], "cuda")

        def give() -> None:
            given.give("orig", [1], batch)
            second.set()

        thread = threading.Thread(target=give)
        thread.start()
        assert not second.wait(0.2)  # no third batch would be in memory
        writer.go_on.set()
        assert second.wait(60)
        thread.join(60)
    assert [index for index, _, _ in writer.put_] == [0, 1]


def test_an_error_is_told(device: str) -> None:
    writer = Writer(refuse=1)
    writer.go_on.set()
    with pytest.raises(ValueError, match="image 1 is refused"), handover(writer) as given:
        given.give("orig", [0, 1, 2], features([0, 1, 2], device))
    assert [index for index, _, _ in writer.put_] == [0]


def test_an_error_of_putting_hides_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two errors the one that came out first is told."""
    writer = Writer(refuse=1)
    writer.go_on.set()

    def stopped() -> None:
        with handover(writer) as given:
            given.give("orig", [1], features([1], "cuda"))
            raise KeyError("first")

    with pretended(monkeypatch), pytest.raises(KeyError, match="first"):
        stopped()
