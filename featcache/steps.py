"""How many steps the channels of a map get: as few as keep the error of rounding within a bound, judged beforehand.

Fewer steps make smaller caches. What a head reads are means over many cells of a fine map and few of a coarse one, and
rounding errors of neighbours are independent, so a fine map can be rounded more coarsely than a coarse one. The number
follows from the image's own values alone: it is the same whoever extracts the image, in whatever order.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

MOST_STEPS = 255
"""What uint8 holds; where more would be needed, that many."""
FEWEST_STEPS = 128
"""However small the error: a channel with a large mean and little variation keeps its seven bits."""
BLOCKS = 64
"""Blocks along a side of the map over which means are taken, a block being at least a cell: those of a 14 x 14 RoI on
a box of about a fifth of the image's side."""
_SAMPLED_ROWS = 32
"""About so many rows of a map tell which share of a channel's cells holds its least value."""


def fewest_steps(
    values: Tensor,  # "c h w" float32
    low: Tensor,  # "c"
    high: Tensor,  # "c"
    max_error: float,
) -> Tensor:
    """Steps for all channels of a map, a whole number in a float32 scalar on its device.

    With them the relative L2 error of the means of blocks is expected to be `max_error` at most, or they are
    MOST_STEPS. A cell that holds its channel's least value is stored exactly; every other one is expected to be off by
    the variance of a uniform error, step**2 / 12, of which the mean of n cells has 1 / n. That is so where values vary
    by more than a step from cell to cell; where they do not, neighbours are off alike and a mean gains less.
    """
    height, width = (max(1, side // BLOCKS) for side in values.shape[1:])
    means = values if height * width == 1 else avg_pool2d(values, (height, width))
    some = values[:, :: max(1, values.shape[1] // _SAMPLED_ROWS)].clone().flatten(1)
    share = some.sub_(low[:, None]).sign_().mean(1)  # of cells above it: faster than comparing and counting
    noise = ((high - low).double().square() * share).sum() / (12 * MOST_STEPS**2 * height * width)
    flat = means.flatten(1)
    norms = cast(Tensor, torch.linalg.vector_norm(flat, dim=1))  # pyright: ignore[reportUnknownMemberType]
    energy = norms.double().square().sum() / means[0].numel()
    ratio = noise / energy.nan_to_num(posinf=0)  # beyond 1e19 squares leave float32: all steps
    steps = (MOST_STEPS / max_error * ratio.sqrt()).ceil().nan_to_num(nan=MOST_STEPS)  # a map of zeros has no ratio
    return steps.clamp(FEWEST_STEPS, MOST_STEPS).float()
