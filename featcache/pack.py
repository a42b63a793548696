"""What `put` was given, checked and made ready for the disk: detections as rows, maps as stored tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache import codecs
from featcache.errors import BadValueError
from featcache.layout import RowArray
from featcache.spec import CacheSpec

SMALL_MAP = 1 << 22
"""Values of a map below which several threads gain less than they cost."""


@contextmanager
def one_thread_if_small(maps: Iterable[Tensor]) -> Generator[None]:
    """Inside, torch computes on one core where the maps lie in the processor's memory and are all small.

    Each of its threads waits for the next piece of work at full speed for a while; with pieces as small as these they
    would take the cores from the detector, the decoding of images and the writer's own threads.
    """
    threads = torch.get_num_threads()
    few = threads > 1 and all(tensor.device.type == "cpu" and tensor.numel() < SMALL_MAP for tensor in maps)
    if few:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if few:
            torch.set_num_threads(threads)


def detection_rows(
    arrays: Mapping[str, RowArray],  # of the view, by name
    detections: Mapping[str, Tensor | None],
    *,
    name: str,
) -> dict[str, NDArray[Any]]:
    """Rows of the detections, zeros after the n given; raises BadValueError, naming the image as `name`.

    detections: boxes "n 4", scores "n", labels "n", queries "n d"; all None where n is 0.
    """
    missing = [key for key, values in detections.items() if values is None]
    if 0 < len(missing) < len(detections):
        raise BadValueError(
            f"{name}: detections without {', '.join(missing)}", "give all four tensors, or none of them"
        )
    count, (most,) = 0 if detections["boxes"] is None else len(detections["boxes"]), arrays["scores"].shape
    if count > most:
        raise BadValueError(f"{name}: {count} detections given, cache holds {most}")
    rows = {key: np.zeros(arrays[key].shape, arrays[key].dtype) for key in detections}
    fetched = on_host({key: _as_float(values) for key, values in detections.items() if values is not None})
    for key, given in fetched.items():
        expected = (count, *arrays[key].shape[1:])
        if given.shape != expected:
            raise BadValueError(f"{name}: {key} are {given.shape}, expected {expected}")
        finite = np.isfinite(given)
        if not finite.all():
            raise BadValueError(f"{name}: {key} hold {given[~finite][0]} at {np.argwhere(~finite)[0].tolist()}")
        rows[key][:count] = given
    return {"count": np.array(count), **rows}


def _as_float(values: Tensor) -> Tensor:
    """NumPy has no bfloat16."""
    return values.float() if values.is_floating_point() else values


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """The tensors as arrays. A GPU writes them all into memory that it reaches by itself, and is waited for once."""
    fetched = {name: tensor.detach().to("cpu", non_blocking=True) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return {name: tensor.numpy() for name, tensor in fetched.items()}


def encode_maps(spec: CacheSpec, maps: Mapping[str, Tensor], *, name: str) -> dict[str, codecs.Encoded]:
    """Stored values of every map "c h w", on its device; raises BadValueError, naming image, level and position."""
    names = [level.name for level in spec.levels]
    if set(maps) != set(names):
        raise BadValueError(f"{name}: maps {sorted(maps)} given, cache holds {sorted(names)}")
    for level in spec.levels:
        shape = tuple(maps[level.name].shape)
        if len(shape) != 3 or shape[0] != level.channels or not 0 < shape[1] * shape[2] <= level.tokens:
            raise BadValueError(
                f"{name}, level {level.name}: map is {shape}, "
                f"cache holds ({level.channels}, h, w) with h * w up to {level.tokens}"
            )
    ranges = {level: codecs.channel_range(maps[level]) for level in names}
    checks = torch.stack([codecs.storable(spec.codec, *ranges[level]).all() for level in names])
    if not checks.all():  # one wait for the device, whatever the number of levels
        level = names[int(checks.int().argmin())]
        raise _refusal(spec, maps[level], f"{name}, level {level}")
    return {level: codecs.encode(spec.codec, maps[level], *ranges[level], max_error=spec.max_error) for level in names}


def _refusal(spec: CacheSpec, values: Tensor, where: str) -> BadValueError:
    row, column, channel = codecs.first_bad(spec.codec, values)
    value = float(values[channel, row, column])
    return BadValueError(
        f"{where}: value {value} at row {row}, column {column}, channel {channel} cannot be stored as {spec.codec}",
        "find out what makes the detector give it; codec none holds every finite float32",
    )
