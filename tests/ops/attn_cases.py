"""What the tests of deformable attention draw: levels of a few cells, points in, on the rim of and outside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Arguments of `ms_deform_attn`."""

    value: Tensor
    shapes: list[tuple[int, int]]
    locations: Tensor
    weights: Tensor

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Case":
        """On another device; `dtype` is that of the values."""
        value = self.value.to(device=device, dtype=dtype)
        return Case(value, self.shapes, self.locations.to(device), self.weights.to(device))


def case(
    shapes: Sequence[tuple[int, int]],
    *,
    b: int = 1,
    q: int = 5,
    heads: int = 2,
    channels: int = 3,
    points: int = 4,
    spread: float = 0.3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Random values and points, some of them up to `spread` outside; weights sum to one."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    value = torch.randn(b, sum(h * w for h, w in shapes), heads, channels, **options)
    locations = torch.rand(b, q, heads, len(shapes), points, 2, **options) * (1 + 2 * spread) - spread
    weights = torch.randn(b, q, heads, len(shapes) * points, **options).softmax(-1)
    weights = weights.view(b, q, heads, len(shapes), points)
    return Case(value.to(dtype), list(shapes), locations.to(dtype), weights.to(dtype))


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    channels: tuple[int, ...] = (1, 2, 3),
    points: tuple[int, ...] = (1, 2, 4),
    dtype: torch.dtype = torch.float32,
) -> Case:
    """One to three levels, down to a single cell, no image and no query too; points far outside and on whole cells."""
    side = st.integers(1, 7)
    found = case(
        draw(st.lists(st.tuples(side, side), min_size=1, max_size=3)),
        b=draw(st.integers(0, 3)),
        q=draw(st.integers(0, 6)),
        heads=draw(st.integers(1, 3)),
        channels=draw(st.sampled_from(channels)),
        points=draw(st.sampled_from(points)),
        spread=draw(st.sampled_from([0.0, 0.3, 2.0])),
        dtype=dtype,
        seed=draw(st.integers(0, 2**31)),
    )
    places = found.locations.flatten()
    for _ in range(draw(st.integers(0, 3)) if len(places) else 0):
        strange = st.sampled_from([-1e9, -1.0, 0.0, 0.5, 1.0, 2.0, 1e9])
        places[draw(st.integers(0, len(places) - 1))] = draw(strange)
    return found


def gradients(attend: Callable[..., Tensor], one: Case, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of value, locations and weights, by autograd through `attend(value, shapes, locations, weights)`."""
    leaves = [part.detach().requires_grad_() for part in (one.value, one.locations, one.weights)]
    found = torch.autograd.grad(attend(leaves[0], one.shapes, leaves[1], leaves[2]), leaves, grad)
    return found[0], found[1], found[2]
