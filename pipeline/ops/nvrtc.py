"""CUDA source -> machine code, by NVRTC out of the wheels that CUDA torch brings, kept on disk. Needs no GPU."""

import contextlib
import functools
import hashlib
import importlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PipelineError

FOLDER = Path(__file__).parent  # the sources are package data
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Program:
    """A source file of this folder and the macros it is built with."""

    file: str
    macros: tuple[tuple[str, str], ...] = ()

    @property
    def defines(self) -> list[str]:
        """The macros as a compiler takes them."""
        return [f"-D{name}={value}" for name, value in self.macros]


def missing() -> str:
    """Why NVRTC cannot be used here, one clause; empty where it can."""
    try:
        version()
    except ImportError:
        return "the package cuda-bindings is not installed, which CUDA builds of torch bring"
    except Exception as error:  # cuda.bindings raises RuntimeError and others where it finds no library
        return f"NVRTC does not load ({error})"
    return ""


def bindings(name: str) -> Any:
    """The module `cuda.bindings.<name>`; ImportError where it is not installed. It has no types that tell much."""
    return importlib.import_module(f"cuda.bindings.{name}")


@functools.cache
def version() -> tuple[int, int]:
    """Of the NVRTC library; raises what `cuda.bindings` raises where there is none."""
    nvrtc = bindings("nvrtc")
    status, major, minor = nvrtc.nvrtcVersion()
    _check(status)
    return int(major), int(minor)


def target(capability: tuple[int, int]) -> str:
    """What to compile for a device of this compute capability.

    `sm_90` where this NVRTC knows the device, else PTX of the newest that it knows (`compute_120`), which the driver
    translates.
    """
    nvrtc = bindings("nvrtc")
    status, known = nvrtc.nvrtcGetSupportedArchs()
    _check(status)
    wanted = 10 * capability[0] + capability[1]
    if wanted in known:
        return f"sm_{wanted}"
    older = [arch for arch in known if arch < wanted]
    if not older:
        mine = ".".join(map(str, version()))
        raise PipelineError(
            f"NVRTC {mine} cannot compile for compute capability {wanted / 10}", "backend='torchvision' runs there"
        )
    return f"compute_{max(older)}"


def machine_code(program: Program, arch: str) -> bytes:
    """Cubin (or PTX, see `target`) of a program, from the folder of earlier ones where it is there and whole."""
    file = cache_file(program, arch)
    with contextlib.suppress(OSError):
        kept = file.read_bytes()
        digest, code = kept[:_DIGEST], kept[_DIGEST:]
        if hashlib.sha256(code).digest() == digest:  # the driver is told no length, and would read beyond a half file
            return code
    code = compile_program(program, arch)
    with contextlib.suppress(OSError):  # a folder that cannot be written costs time, nothing else
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}.{secrets.token_hex(4)}.part")  # several processes may build
        try:
            part.write_bytes(hashlib.sha256(code).digest() + code)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    return code


def cache_file(program: Program, arch: str) -> Path:
    """Where the SHA-256 and the code of a program are kept: named by sources, macros, architecture, NVRTC's version."""
    identity = repr((sorted(sources(program.file).items()), program.defines, _OPTIONS, arch, version()))
    home = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"  # the standard ignores relative paths
    name = f"{Path(program.file).stem}-{arch}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"
    return root / "featcache" / "kernels" / name


def compile_program(program: Program, arch: str) -> bytes:
    """Cubin, or PTX where `arch` is `compute_NN`; raises PipelineError with the compiler's own words."""
    nvrtc = bindings("nvrtc")
    texts = dict(sources(program.file))
    main = texts.pop(program.file)
    headers = [text.encode() for text in texts.values()], [name.encode() for name in texts]
    status, handle = nvrtc.nvrtcCreateProgram(main.encode(), program.file.encode(), len(texts), *headers)
    _check(status)
    try:
        options = [option.encode() for option in [*_OPTIONS, f"-arch={arch}", *program.defines]]
        (status,) = nvrtc.nvrtcCompileProgram(handle, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _read(handle, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
            raise PipelineError(f"{program.file} does not compile for {arch}: {log.decode(errors='replace')}")
        if arch.startswith("compute_"):
            return _read(handle, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        return _read(handle, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    finally:
        nvrtc.nvrtcDestroyProgram(handle)


@functools.cache
def sources(file: str) -> dict[str, str]:
    """Name -> text of a source file and of the files of this folder that it includes."""
    found: dict[str, str] = {}
    waiting = [file]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = (FOLDER / name).read_text(encoding="utf-8")
            waiting.extend(_INCLUDE.findall(found[name]))
    return found


_OPTIONS: Sequence[str] = ("--std=c++17", "--restrict")
_DIGEST = hashlib.sha256().digest_size


def _read(handle: Any, size: Any, get: Any) -> bytes:
    status, count = size(handle)
    _check(status)
    buffer = bytearray(count)
    # cuda.bindings writes into the object it is given
    (status,) = get(handle, buffer)
    _check(status)
    return bytes(buffer)


def _check(status: Any) -> None:
    if int(status) != 0:
        raise PipelineError(f"NVRTC: {status.name}", "backend='torchvision' runs without it")
