"""The benchmark of extraction times what a GPU does, not how soon it is asked."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts import bench_extract


def test_the_detector_alone_is_timed_until_a_gpu_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    model: Any = SimpleNamespace(transform=None, detect=lambda images: events.append("asked"))
    coco: Any = SimpleNamespace(images=range(10))
    monkeypatch.setattr(bench_extract, "plan_batches", lambda *_: [])
    monkeypatch.setattr(bench_extract, "decode_ahead", lambda *_, **__: [SimpleNamespace(images=None)] * 2)
    monkeypatch.setattr(bench_extract.Clock, "cost", lambda clock: events.append("stopped"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("done"))
    bench_extract.detector_alone(model, coco, argparse.Namespace(device="cuda", batch_size=4))
    assert events == ["asked", "asked", "done", "stopped"]
