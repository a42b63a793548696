"""The way from code to a launch, with a driver that only writes down what it is asked."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.ops import cuda_driver, nvrtc
from pipeline.ops.nvrtc import Program


class Status(int):
    """What every call of `cuda.bindings` gives first."""

    @property
    def name(self) -> str:
        return f"CUDA_ERROR_{int(self)}"


class Driver:
    """`cuda.bindings.driver` as far as it is used. Refuses to load code that is `bad`."""

    def __init__(self) -> None:
        self.context = 0
        self.loads: list[bytes] = []
        self.launches: list[tuple[Any, ...]] = []
        self.launch_status = 0

    def __getattr__(self, name: str) -> Any:
        answers = {"cuDeviceGet": 7, "cuDevicePrimaryCtxRetain": 70, "cuCtxGetCurrent": self.context}
        return lambda *_: (Status(0), answers[name])

    def cuCtxSetCurrent(self, context: int) -> tuple[Status]:  # noqa: N802
        self.context = context
        return (Status(0),)

    def cuModuleLoadData(self, code: bytes) -> tuple[Status, int]:  # noqa: N802
        self.loads.append(code)
        return Status(200 if code == b"bad" else 0), 5

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Status, bytes]:  # noqa: N802
        assert module == 5
        return Status(0), name

    def cuLaunchKernel(self, *arguments: Any) -> tuple[Status]:  # noqa: N802
        *grid, pointers, extra = arguments
        first = ctypes.cast(pointers, ctypes.POINTER(ctypes.POINTER(Arguments)))[0][0]
        self.launches.append((*grid, first.number))
        assert extra == 0
        return (Status(self.launch_status),)


class Arguments(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int),)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Driver]:
    found = Driver()
    monkeypatch.setattr(nvrtc, "bindings", lambda name: found)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "target", lambda capability: f"sm_{capability[0]}{capability[1]}")
    monkeypatch.setattr(nvrtc, "compile_program", lambda program, arch: f"{program.file} {arch}".encode())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=1000 + index))
    for kept in (cuda_driver.loaded, cuda_driver.primary_context):
        kept.cache_clear()
    yield found
    for kept in (cuda_driver.loaded, cuda_driver.primary_context):
        kept.cache_clear()


PROGRAM = Program("roi_align.cu")


def launch(number: int = 42) -> None:
    cuda_driver.launch(PROGRAM, "kernel", (3, 2), 128, Arguments(number), torch.device("cuda", 1))


def test_launches_on_the_current_stream_in_the_primary_context(driver: Driver) -> None:
    launch()
    launch(43)
    assert driver.context == 70
    assert driver.loads == [b"roi_align.cu sm_90"]  # once
    assert driver.launches == [(b"kernel", 3, 2, 1, 128, 1, 1, 0, 1001, number) for number in (42, 43)]


def test_damaged_kept_code_never_reaches_the_driver(driver: Driver) -> None:
    kept = nvrtc.cache_file(PROGRAM, "sm_90")
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"bad")
    launch()
    assert driver.loads == [b"roi_align.cu sm_90"]


def test_code_that_never_loads_and_failed_launches_are_errors(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.launch_status = 1
    with pytest.raises(PipelineError, match="launch of kernel failed with CUDA_ERROR_1"):
        launch()
    cuda_driver.loaded.cache_clear()
    nvrtc.cache_file(PROGRAM, "sm_90").unlink()
    monkeypatch.setattr(nvrtc, "compile_program", lambda program, arch: b"bad")
    with pytest.raises(PipelineError, match=r"loading roi_align\.cu for sm_90 failed with CUDA_ERROR_200"):
        launch()
