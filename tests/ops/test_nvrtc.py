"""Compiled kernels are kept on disk: found again, never half written, never stale."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.ops import nvrtc
from pipeline.ops.nvrtc import Program

pytest.importorskip("cuda.bindings", reason="cuda-bindings is absent: this torch is no CUDA build")

DOUBLE = """#include "part.cuh"
extern "C" __global__ void twice(float* values) { values[threadIdx.x] *= FACTOR * one(); }
"""
PART = "__device__ float one() { return 1.0f; }\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sources and cache of a toy program."""
    (tmp_path / "twice.cu").write_text(DOUBLE)
    (tmp_path / "part.cuh").write_text(PART)
    monkeypatch.setattr(nvrtc, "FOLDER", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    nvrtc.sources.cache_clear()
    yield tmp_path
    nvrtc.sources.cache_clear()


TWICE = Program("twice.cu", (("FACTOR", "2"),))


def test_is_compiled_once_and_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = nvrtc.machine_code(TWICE, "sm_90")
    assert code[:4] == b"\x7fELF"
    assert len(list((folder / "cache/featcache/kernels").iterdir())) == 1
    monkeypatch.setattr(nvrtc, "compile_program", lambda *_: pytest.fail("compiled again"))
    assert nvrtc.machine_code(TWICE, "sm_90") == code


@pytest.mark.parametrize("size", [0, 10, 32, 1000, -1])
def test_damaged_kept_code_is_made_again(folder: Path, size: int) -> None:
    """It must not reach the driver, which reads on where a file ends too soon."""
    code, kept = nvrtc.machine_code(TWICE, "sm_90"), nvrtc.cache_file(TWICE, "sm_90")
    whole = kept.read_bytes()
    assert len(whole) > 1000
    kept.write_bytes(whole[:size])
    assert nvrtc.machine_code(TWICE, "sm_90") == code
    assert kept.read_bytes() == whole


def test_ptx_for_devices_that_are_newer_than_nvrtc(folder: Path) -> None:
    arch = nvrtc.target((99, 0))
    assert arch.startswith("compute_")
    assert b".visible .entry twice" in nvrtc.machine_code(TWICE, arch)
    assert nvrtc.target((9, 0)) == "sm_90"
    with pytest.raises(PipelineError, match="compute capability 1"):
        nvrtc.target((1, 0))


def test_everything_that_changes_the_code_changes_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {nvrtc.cache_file(TWICE, "sm_90"), nvrtc.cache_file(TWICE, "sm_80")}
    names.add(nvrtc.cache_file(Program("twice.cu", (("FACTOR", "3"),)), "sm_90"))
    (folder / "part.cuh").write_text(PART + "// other\n")
    nvrtc.sources.cache_clear()
    names.add(nvrtc.cache_file(TWICE, "sm_90"))
    monkeypatch.setattr(nvrtc, "version", lambda: (1, 0))
    names.add(nvrtc.cache_file(TWICE, "sm_90"))
    assert len(names) == 5


def test_relative_cache_home_is_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    monkeypatch.setenv("HOME", str(folder))
    assert nvrtc.cache_file(TWICE, "sm_90").is_relative_to(folder / ".cache/featcache")


def test_a_folder_that_cannot_be_written_costs_nothing_else(folder: Path) -> None:
    (folder / "cache").write_text("a file where the folder should be")
    assert nvrtc.machine_code(TWICE, "sm_90")[:4] == b"\x7fELF"


def test_a_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert nvrtc.machine_code(TWICE, "sm_90")
    assert not list((folder / "cache/featcache/kernels").iterdir())


def test_errors_are_the_compilers_own_words(folder: Path) -> None:
    with pytest.raises(PipelineError, match=r"twice.cu does not compile for sm_90.*FACTOR"):
        nvrtc.compile_program(Program("twice.cu"), "sm_90")
