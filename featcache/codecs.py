"""How the values of one map become stored tokens and come back: `uint8` affine per channel, `fp16`, `none` (float32).

Tokens are the cells of a map in row-major order, channels last: "t c" with t = h * w. The largest error each codec adds
to a value x is `scale / 2` (uint8; scale is the range of that channel in that image / its steps, 255 or fewer, see
`steps.py`), 2**-11 * |x| (fp16), 0 (none).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from featcache.moments import Moments
from featcache.spec import STORED_DTYPE, Codec
from featcache.steps import MOST_STEPS, fewest_steps

FLOAT16_MAX = 65504.0
_ROUNDING = 2.0**23
"""Added to a float32 from 0 to 255 it leaves no bit for a fraction: the sum is rounded to even as `torch.round` does,
and its lowest byte is the whole number. Twice as fast as rounding, then converting."""
_TORCH_DTYPE = {"fp16": torch.float16, "none": torch.float32}


@dataclass(frozen=True)
class Encoded:
    """One map in stored values, still on the device that made it."""

    tokens: Tensor  # h w c, stored dtype
    scale: Tensor | None  # c, float32; uint8 only
    offset: Tensor | None  # c, float32; uint8 only

    def moments(self) -> Moments:
        """Of the map that a reader will get."""
        if self.scale is None or self.offset is None:
            return Moments.of(self.tokens.permute(2, 0, 1))
        return Moments.of_codes(self.tokens, self.scale, self.offset)


def numpy_dtype(codec: Codec) -> DTypeLike:
    """Little-endian dtype of the stored tokens."""
    return np.dtype(STORED_DTYPE[codec]).newbyteorder("<")


def channel_range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each channel of "c h w", float32; NaN where a channel holds one."""
    flat = values.flatten(1)
    return flat.amin(1).float(), flat.amax(1).float()  # on a CPU ten times faster than torch.aminmax


def storable(codec: Codec, low: Tensor, high: Tensor) -> Tensor:
    """Whether each channel with that range can be stored: no NaN, no infinity, for fp16 nothing beyond float16."""
    if codec == "fp16":
        return (low >= -FLOAT16_MAX) & (high <= FLOAT16_MAX)
    return high - low < torch.inf  # not so of NaN; float32 max is finite, but a range over it could not be scaled


def first_bad(codec: Codec, values: Tensor) -> tuple[int, int, int]:
    """(row, column, channel) of the first value of "c h w" that `storable` refuses, in token order."""
    values = values.float()
    limit = FLOAT16_MAX if codec == "fp16" else torch.finfo(torch.float32).max / 2
    bad = ~(values.abs() <= limit)
    row, column, channel = bad.permute(1, 2, 0).nonzero()[0]
    return int(row), int(column), int(channel)


def encode(codec: Codec, values: Tensor, low: Tensor, high: Tensor, *, max_error: float = 0.0) -> Encoded:
    """Stored values of one map "c h w" whose channels range over [low, high] and are `storable`.

    `max_error` is that of `CacheSpec`, for uint8.
    """
    if codec != "uint8":
        return Encoded(values.to(_TORCH_DTYPE[codec]).permute(1, 2, 0).contiguous(), None, None)
    values = values.float()
    scale = (high - low) / (fewest_steps(values, low, high, max_error) if max_error else MOST_STEPS)
    step = torch.where(scale > 0, scale, 1.0)  # a constant channel stores 0
    levels = (values - low[:, None, None]).div_(step[:, None, None]).clamp_(0, MOST_STEPS).add_(_ROUNDING)
    return Encoded(levels.view(torch.int32).to(torch.uint8).permute(1, 2, 0).contiguous(), scale, low)


def add_delta(tokens: Tensor) -> Tensor:
    """Each row of "h w c" uint8 minus the row above, modulo 256; the first row stays."""
    delta = tokens.clone()
    torch.sub(tokens[1:], tokens[:-1], out=delta[1:])
    return delta


def undo_delta(tokens: Tensor) -> Tensor:
    """The inverse of `add_delta`. On the CPU it works in place."""
    if tokens.is_cuda:
        return torch.cumsum(tokens, dim=0, dtype=torch.uint8)
    # Row by row: 0.7 ms for a 200 x 304 x 256 map on one core, where torch.cumsum takes 130 and numpy's 160.
    rows = tokens.unbind(0)
    for above, row in pairwise(rows):
        row.add_(above)
    return tokens


def decode(
    tokens: Tensor, scale: Tensor | None, offset: Tensor | None, *, delta: bool, out: Tensor | None = None
) -> Tensor:
    """Float32 map "c h w" (channels-last in memory) of stored "h w c" tokens. May overwrite `tokens`.

    out: float32 "h w c" that takes the values.
    """
    values = torch.empty(tokens.shape, device=tokens.device) if out is None else out
    if scale is None or offset is None:
        values.copy_(tokens)  # float32 tokens may lie in a buffer that is used again
    else:
        if delta:
            tokens = undo_delta(tokens)
        torch.mul(tokens, scale, out=values).add_(offset)
    return values.permute(2, 0, 1)


def pad_tokens(tokens: NDArray[np.generic], count: int) -> NDArray[np.generic]:
    """Tokens "t c" followed by zero tokens up to `count`, contiguous."""
    if len(tokens) == count:
        return np.ascontiguousarray(tokens)
    padded = np.zeros((count, tokens.shape[1]), tokens.dtype)
    padded[: len(tokens)] = tokens
    return padded
