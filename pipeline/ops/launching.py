"""What the Python sides of our CUDA kernels share: formats, how a launch looks, the channels of a thread."""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .nvrtc import Program

TYPE_NAMES = {
    torch.float32: "float",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.uint8: "uint8",
}
"""Formats that numbers.cuh reads, and what it calls them."""

Launch = Callable[[Program, str, tuple[int, int], int, ctypes.Structure, torch.device], None]
"""Runs a kernel: program, its name, blocks in x and y, threads in a block, arguments, device."""


def vector_width(
    channels: int, tensors: Sequence[Tensor], parameters: Sequence[Tensor] = (), *, load_bytes: int
) -> int:
    """Channels of a thread: as many as fill a load of the narrowest format and keep every address aligned.

    tensors: what threads walk through, channels last. parameters: read beside them, not counted in the width.
    """
    vec = min(load_bytes // min(tensor.element_size() for tensor in tensors), 16)

    def aligned(tensor: Tensor) -> bool:
        word = min(vec * tensor.element_size(), 16)
        steps = (step * tensor.element_size() for step in tensor.stride()[:-1])
        return all(place % word == 0 for place in (*steps, tensor.data_ptr()))

    while vec > 1 and (channels % vec or not all(aligned(tensor) for tensor in (*tensors, *parameters))):
        vec //= 2
    return vec
