"""Runs our CUDA kernels without a GPU: their source, built by the system's C++ compiler behind `cuda_on_cpu.h`.

`launcher(folder)` stands in for `cuda_driver.launch` and takes tensors of the CPU. The build checks itself for
misaligned addresses, signed overflow and casts out of range (`-fsanitize=undefined`): a GPU would fault or disagree.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.ops.launching import Launch
from pipeline.ops.nvrtc import FOLDER, Program, sources

HERE = Path(__file__).parent
# No contraction to fused multiply-adds: coordinates must round as they do on the GPU and in torchvision.
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-fsanitize=undefined,float-cast-overflow"]
FLAGS += ["-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function"]


def compiler() -> str:
    """Path of g++ or clang++; skips the test where there is neither."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no g++ and no clang++ here: the CUDA source cannot be executed on the CPU (apt install g++)")
    return found


def launcher(folder: Path) -> Launch:
    """Keeps what it builds in `folder`."""
    built: dict[Program, ctypes.CDLL] = {}

    def launch(
        program: Program,
        kernel: str,
        blocks: tuple[int, int],
        threads: int,
        arguments: ctypes.Structure,
        device: torch.device,
    ) -> None:
        assert device.type == "cpu"
        if program not in built:
            built[program] = ctypes.CDLL(str(_build(program, folder)))
        run = getattr(built[program], f"run_{kernel}")
        run(ctypes.byref(arguments), *(ctypes.c_uint(count) for count in (*blocks, threads)))

    return launch


def of_pretended(launch: Launch) -> Launch:
    """The same for tensors of a pretended GPU, whose values lie in the processor's memory."""
    return lambda program, kernel, blocks, threads, arguments, device: launch(
        program, kernel, blocks, threads, arguments, torch.device("cpu")
    )


def kernels(file: str) -> list[str]:
    """Names of the kernels in a source file."""
    return re.findall(r'extern "C" __global__ void (\w+)\(', sources(file)[file])


def _build(program: Program, folder: Path) -> Path:
    name = hashlib.sha256(repr(program).encode()).hexdigest()[:16]
    library, main = folder / f"{name}.so", folder / f"{name}.cpp"
    lines = ['#include "cuda_on_cpu.h"', f'#include "{program.file}"', 'extern "C" {']
    for kernel in kernels(program.file):
        lines.append(f"void run_{kernel}(const Arguments* a, unsigned x, unsigned y, unsigned threads) {{")
        lines.append(f"    run({kernel}, *a, x, y, threads);")
        lines.append("}")
    main.write_text("\n".join([*lines, "}", ""]))
    command = [compiler(), *FLAGS, *program.defines, f"-I{HERE}", f"-I{FOLDER}", str(main), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return library
