"""Other ways to keep the same arrays on disk, each as a class with `write` and `read` of one image, for bench_cache.py.

`arrays` are the stored values by level: uint8 row differences (as featcache stores them) or float16 tokens. A peer
reads into its own fresh memory unless its library can fill a given buffer.
"""

# ruff: noqa: B027, D102  (open and close are optional; what the methods do stands in Peer)

from __future__ import annotations

import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from featcache import zstd
from featcache.chunks import CHECKSUM_BYTES, check_body, crc32c

Arrays = dict[str, NDArray[Any]]


class Peer(ABC):
    """One format in one directory; `close` makes everything reach the files."""

    def __init__(self, folder: Path, like: Arrays, images: int, compress: bool) -> None:
        self.folder = folder
        self.like = like
        self.images = images
        self.compress = compress
        self.buffers = {name: np.empty_like(values) for name, values in like.items()}
        folder.mkdir(parents=True)
        self.open()

    def open(self) -> None:
        """Make the container, if the format has one."""

    @abstractmethod
    def write(self, index: int, arrays: Arrays) -> None:
        """Store the arrays of an image."""

    @abstractmethod
    def read(self, index: int) -> Arrays:
        """Give the arrays of an image."""

    def close(self) -> None:
        """Finish writing."""

    def _pack(self, values: NDArray[Any]) -> bytes:
        return zstd.compress(values) if self.compress else values.tobytes()

    def _unpack(self, name: str, data: Any) -> NDArray[Any]:
        buffer = self.buffers[name]
        if self.compress:
            zstd.codec.decode(data, buffer)
        else:
            buffer.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        return buffer


class ZarrDefault(Peer):
    """zarr-python as it comes: default codecs, one chunk per image."""

    def open(self) -> None:
        group: Any = zarr.create_group(self.folder, overwrite=True)
        for name, values in self.like.items():
            shape = (self.images, *values.shape)
            group.create_array(name, shape=shape, chunks=(1, *values.shape), dtype=values.dtype)
        self.group = group
        self.arrays = {name: group[name] for name in self.like}

    def write(self, index: int, arrays: Arrays) -> None:
        for name, values in arrays.items():
            self.arrays[name][index] = values

    def read(self, index: int) -> Arrays:
        return {name: array[index] for name, array in self.arrays.items()}


class Npy(Peer):
    """One .npy per image and level."""

    def write(self, index: int, arrays: Arrays) -> None:
        for name, values in arrays.items():
            np.save(self.folder / f"{index}.{name}.npy", values)

    def read(self, index: int) -> Arrays:
        return {name: np.load(self.folder / f"{index}.{name}.npy") for name in self.like}


class Safetensors(Peer):
    """One .safetensors per image."""

    def write(self, index: int, arrays: Arrays) -> None:
        from safetensors.numpy import save_file

        save_file(arrays, self.folder / f"{index}.safetensors")

    def read(self, index: int) -> Arrays:
        from safetensors.numpy import load_file

        return load_file(self.folder / f"{index}.safetensors")


class Lmdb(Peer):
    """One value per image and level in a memory-mapped B-tree, read without a copy before decoding."""

    def open(self) -> None:
        import lmdb

        self.env = lmdb.open(str(self.folder / "db"), map_size=1 << 40, subdir=False, lock=False, writemap=False)

    def write(self, index: int, arrays: Arrays) -> None:
        with self.env.begin(write=True) as transaction:
            for name, values in arrays.items():
                transaction.put(f"{index}/{name}".encode(), self._pack(values))

    def read(self, index: int) -> Arrays:
        with self.env.begin(buffers=True) as transaction:
            return {name: self._unpack(name, transaction.get(f"{index}/{name}".encode())) for name in self.like}

    def close(self) -> None:
        self.env.sync(True)


class LmdbChecked(Lmdb):
    """The same with the checksum that the cache has, verified when read."""

    def _pack(self, values: NDArray[Any]) -> bytes:
        body = super()._pack(values)
        return body + crc32c(body).to_bytes(CHECKSUM_BYTES, "little")

    def _unpack(self, name: str, data: Any) -> NDArray[Any]:
        return super()._unpack(name, check_body(bytes(data)))


class Hdf5(Peer):
    """One dataset per level, one chunk per image; zstd by hdf5plugin."""

    def open(self) -> None:
        import h5py
        import hdf5plugin

        codec: dict[str, Any] = dict(hdf5plugin.Zstd(clevel=1)) if self.compress else {}
        self.file = h5py.File(self.folder / "all.h5", "w")
        for name, values in self.like.items():
            shape = (self.images, *values.shape)
            self.file.create_dataset(name, shape, values.dtype, chunks=(1, *values.shape), **codec)

    def write(self, index: int, arrays: Arrays) -> None:
        for name, values in arrays.items():
            self.file[name][index] = values

    def read(self, index: int) -> Arrays:
        for name, buffer in self.buffers.items():
            self.file[name].read_direct(buffer, np.s_[index])
        return self.buffers

    def close(self) -> None:
        self.file.flush()


class Webdataset(Peer):
    """One tar, read in order by webdataset; `read` takes the next image whatever the index."""

    def open(self) -> None:
        self.tar = tarfile.open(self.folder / "all.tar", "w")  # noqa: SIM115  closed by close()
        self.stream: Any = None

    def write(self, index: int, arrays: Arrays) -> None:
        for name, values in arrays.items():
            data = self._pack(values)
            entry = tarfile.TarInfo(f"{index:06d}.{name}")
            entry.size = len(data)
            self.tar.addfile(entry, io.BytesIO(data))

    def read(self, index: int) -> Arrays:
        if self.stream is None:
            import webdataset

            self.stream = iter(
                webdataset.WebDataset(str(self.folder / "all.tar"), shardshuffle=False, empty_check=False)
            )
        try:
            sample = next(self.stream)
        except StopIteration:
            self.stream = None
            return self.read(index)
        return {name: self._unpack(name, sample[name]) for name in self.like}

    def close(self) -> None:
        self.tar.close()


PEERS: list[tuple[str, str, bool, Callable[..., Peer]]] = [
    ("zarr, default codec", "fp16", True, ZarrDefault),
    ("zarr, default codec", "uint8", True, ZarrDefault),
    (".npy", "fp16", False, Npy),
    (".npy", "uint8", False, Npy),
    ("safetensors", "fp16", False, Safetensors),
    ("safetensors", "uint8", False, Safetensors),
    ("LMDB + zstd 1", "uint8", True, Lmdb),
    ("LMDB + zstd 1 + crc32c", "uint8", True, LmdbChecked),
    ("LMDB", "fp16", False, Lmdb),
    ("HDF5 + zstd 1", "uint8", True, Hdf5),
    ("HDF5 + zstd 1", "fp16", True, Hdf5),
    ("webdataset + zstd 1", "uint8", True, Webdataset),
]
"""Name, stored values, compressed, class."""
