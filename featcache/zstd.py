"""zstd frames of feature maps: few searches for repeats, Huffman codes for what is left. Any zstd reader decodes them.

Maps hold few repeats beside runs of zeros. Level 1 searches for two thirds of its time, and what it finds in C1 makes
the frame larger. The faster levels below zero search less, but leave out Huffman codes unless told not to. numcodecs
cannot tell, so the library inside it is called directly; where that cannot be reached, level 1 it is.
"""

from __future__ import annotations

import ctypes
import threading
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

LEVEL = 1
"""What the metadata of arrays say, and the level of frames where the library cannot be reached."""
_SEARCH = -100
"""Level in its place. On maps of trained detectors 3 % smaller (C1 of DEIMv2) to 0.1 % larger, in half the time."""
_LEVEL_PARAMETER, _LITERALS_PARAMETER, _HUFFMAN = 100, 1002, 1  # names and values of zstd.h


class _Codec(Protocol):
    def encode(self, buf: object) -> bytes: ...
    def decode(self, buf: object, out: object = None) -> bytes: ...


_numcodecs: Any = import_module("numcodecs.zstd")  # has no types
codec: _Codec = _numcodecs.Zstd(level=LEVEL)
"""numcodecs' own."""


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_numcodecs.__file__)
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "ZSTD_createCCtx": (pointer, []),
            "ZSTD_freeCCtx": (size, [pointer]),
            "ZSTD_CCtx_setParameter": (size, [pointer, ctypes.c_int, ctypes.c_int]),
            "ZSTD_compressBound": (size, [size]),
            "ZSTD_compress2": (size, [pointer, pointer, size, pointer, size]),
            "ZSTD_isError": (ctypes.c_uint, [size]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library


_library = _load()
_local = threading.local()


class _Context:
    """What one thread compresses with, again and again."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._context = library.ZSTD_createCCtx()
        self.works = bool(self._context) and not any(
            library.ZSTD_isError(library.ZSTD_CCtx_setParameter(self._context, parameter, value))
            for parameter, value in ((_LEVEL_PARAMETER, _SEARCH), (_LITERALS_PARAMETER, _HUFFMAN))
        )

    def __del__(self) -> None:
        self._library.ZSTD_freeCCtx(self._context)

    def compress(self, values: NDArray[np.generic]) -> bytes:
        """A whole frame with the number of bytes in its header."""
        frame = np.empty(self._library.ZSTD_compressBound(values.nbytes), np.uint8)
        count = self._library.ZSTD_compress2(
            self._context, frame.ctypes.data, frame.nbytes, values.ctypes.data, values.nbytes
        )
        if self._library.ZSTD_isError(count):  # not for want of room in the frame
            raise MemoryError(f"zstd cannot compress {values.nbytes} bytes")
        return frame[:count].tobytes()


def compress(values: NDArray[np.generic]) -> bytes:
    """The frame of contiguous values: the same bytes whichever thread calls."""
    values = np.ascontiguousarray(values)
    if _library is not None:
        if not hasattr(_local, "context"):
            _local.context = _Context(_library)
        context = cast(_Context, _local.context)
        if context.works:
            return context.compress(values)
    return codec.encode(values)
