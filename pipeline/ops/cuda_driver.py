"""Machine code -> kernels that run on torch's current stream, through the driver API of `cuda.bindings`."""

import ctypes
import functools
from typing import Any

import torch

from ..errors import PipelineError
from . import nvrtc
from .nvrtc import Program


@torch.compiler.assume_constant_result
def missing() -> str:
    """Why kernels cannot run on this machine, one clause; empty where they can."""
    return _missing()


@functools.cache
def _missing() -> str:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return nvrtc.missing()


def launch(
    program: Program,
    kernel: str,
    blocks: tuple[int, int],
    threads: int,
    arguments: ctypes.Structure,
    device: torch.device,
) -> None:
    """Run a kernel that takes one structure by value, after the work already in the current stream of `device`."""
    driver = nvrtc.bindings("driver")
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        _make_current(index)
        function = loaded(program, kernel, index)
        stream = torch.cuda.current_stream(index).cuda_stream
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        (status,) = driver.cuLaunchKernel(
            function, blocks[0], blocks[1], 1, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0
        )
        _check(status, f"launch of {kernel}")


@functools.cache
def loaded(program: Program, kernel: str, index: int) -> Any:
    """The kernel in a module of the device's primary context, which torch uses too and which lives as long as it."""
    driver = nvrtc.bindings("driver")
    arch = nvrtc.target(torch.cuda.get_device_capability(index))
    status, module = driver.cuModuleLoadData(nvrtc.machine_code(program, arch))
    _check(status, f"loading {program.file} for {arch}")
    status, function = driver.cuModuleGetFunction(module, kernel.encode())
    _check(status, f"{kernel} in {program.file}")
    return function


def _make_current(index: int) -> None:
    """In a thread of autograd no runtime call may have made the device's context current yet."""
    driver = nvrtc.bindings("driver")
    status, current = driver.cuCtxGetCurrent()
    _check(status, "cuCtxGetCurrent")
    primary = primary_context(index)
    if int(current) != int(primary):
        (status,) = driver.cuCtxSetCurrent(primary)
        _check(status, "cuCtxSetCurrent")


@functools.cache
def primary_context(index: int) -> Any:
    """The context of a device that torch works in."""
    driver = nvrtc.bindings("driver")
    torch.cuda.init()
    # torch counts the devices that CUDA_VISIBLE_DEVICES leaves, and so does the driver
    status, device = driver.cuDeviceGet(index)
    _check(status, "cuDeviceGet")
    status, context = driver.cuDevicePrimaryCtxRetain(device)
    _check(status, "cuDevicePrimaryCtxRetain")
    return context


def _check(status: Any, what: str) -> None:
    if int(status) != 0:
        raise PipelineError(f"CUDA driver: {what} failed with {status.name}", "backend='torchvision' runs without it")
