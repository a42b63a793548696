"""Codecs give back what they took within the error they state; chunks and shards are bytes that zarr reads too."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featcache import chunks, codecs
from featcache.errors import DamagedError

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def round_trip(codec: codecs.Codec, values: torch.Tensor, *, delta: bool) -> tuple[torch.Tensor, codecs.Encoded]:
    encoded = codecs.encode(codec, values, *codecs.channel_range(values))
    tokens = codecs.add_delta(encoded.tokens) if delta else encoded.tokens
    return codecs.decode(tokens, encoded.scale, encoded.offset, delta=delta), encoded


@settings(deadline=None)
@given(values=SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=FLOATS)), delta=st.booleans())
def test_uint8_error_is_half_a_step(values: np.ndarray, delta: bool) -> None:
    maps = torch.from_numpy(values)
    if not codecs.storable("uint8", *codecs.channel_range(maps)).all():
        return
    got, encoded = round_trip("uint8", maps, delta=delta)
    assert encoded.scale is not None
    half = encoded.scale.double()[:, None, None] / 2
    rounding = 2**-22 * maps.double().abs().amax((1, 2), keepdim=True) + 1e-40  # of float32, and its smallest step
    assert ((got.double() - maps.double()).abs() <= half * (1 + 1e-4) + rounding).all()


@given(
    values=SHAPES.flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.floats(-65504, 65504, width=32, allow_subnormal=False))
    )
)
def test_fp16_error_is_half_a_unit_in_the_last_place(values: np.ndarray) -> None:
    maps = torch.from_numpy(values)
    assert codecs.storable("fp16", *codecs.channel_range(maps)).all()
    got, _ = round_trip("fp16", maps, delta=False)
    assert ((got - maps).abs() <= maps.abs() * 2**-11 + 2**-25).all()


@given(values=SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=FLOATS)))
def test_none_is_exact(values: np.ndarray) -> None:
    got, _ = round_trip("none", torch.from_numpy(values), delta=False)
    np.testing.assert_array_equal(got, values)


@settings(deadline=None)
@given(values=SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=FLOATS)))
def test_tokens_are_rounded_to_the_nearest_and_halves_to_even(values: np.ndarray) -> None:
    low, high = codecs.channel_range(torch.from_numpy(values))
    if not codecs.storable("uint8", low, high).all():
        return
    encoded = codecs.encode("uint8", torch.from_numpy(values), low, high)
    assert encoded.scale is not None
    step = np.where(encoded.scale > 0, encoded.scale, 1)[:, None, None].astype(np.float32)
    expected = np.clip(np.rint((values - low.numpy()[:, None, None]) / step), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(encoded.tokens.permute(2, 0, 1), expected)
    halves = torch.tensor([[[0.5, 1.5, 2.5, 254.5, 255.0, 0.0]]])
    assert codecs.encode("uint8", halves, *codecs.channel_range(halves)).tokens.flatten().tolist() == [
        0,
        2,
        2,
        254,
        255,
        0,
    ]


@given(values=arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))))
def test_delta_is_undone_exactly_here_and_by_numpy(values: np.ndarray) -> None:
    delta = codecs.add_delta(torch.from_numpy(values))
    np.testing.assert_array_equal(np.cumsum(delta.numpy(), axis=0, dtype=np.uint8), values)
    np.testing.assert_array_equal(codecs.undo_delta(delta), values)


@pytest.mark.parametrize("value", [0.0, -3.25, 1e30, 1e-42])
def test_constant_channels_are_exact(value: float) -> None:
    maps = torch.full((2, 3, 4), value)
    got, _ = round_trip("uint8", maps, delta=True)
    assert torch.equal(got, maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_taken(dtype: torch.dtype) -> None:
    maps = torch.linspace(-2, 2, 24).view(2, 3, 4).to(dtype)
    for codec in ("uint8", "fp16", "none"):
        got, _ = round_trip(codec, maps, delta=False)
        torch.testing.assert_close(got, maps.float(), rtol=0, atol=4 / 255)


@pytest.mark.parametrize(
    ("codec", "value", "stored"),
    [
        ("uint8", torch.nan, False),
        ("fp16", torch.nan, False),
        ("none", -torch.inf, False),
        ("fp16", 65504.0, True),
        ("fp16", -65536.0, False),
        ("none", 3e38, True),
        ("uint8", 3e38, True),
    ],
)
def test_what_can_be_stored_and_where_it_cannot(codec: codecs.Codec, value: float, stored: bool) -> None:
    maps = torch.zeros(3, 4, 5)
    maps[2, 3, 1] = value
    assert codecs.storable(codec, *codecs.channel_range(maps)).tolist() == [True, True, stored]
    if not stored:
        assert codecs.first_bad(codec, maps) == (3, 1, 2)


@given(data=st.binary(max_size=400), compress=st.booleans(), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_chunks_come_back_and_any_flipped_bit_is_found(data: bytes, compress: bool, place: int, bit: int) -> None:
    values = np.frombuffer(data, np.uint8)
    stored = chunks.encode_chunk(values, compress=compress)
    out = np.empty_like(values)
    if len(values):
        chunks.decode_chunk(stored, out, compress=compress)
    np.testing.assert_array_equal(out, values)
    damaged = bytearray(stored)
    damaged[place % len(damaged)] ^= 1 << bit
    with pytest.raises(DamagedError):
        chunks.decode_chunk(bytes(damaged), out, compress=compress)


def test_chunk_of_another_size_is_damaged() -> None:
    for compress in (True, False):
        stored = chunks.encode_chunk(np.arange(10, dtype=np.uint8), compress=compress)
        with pytest.raises(DamagedError, match="does not decode"):
            chunks.decode_chunk(stored, np.empty(11, np.uint8), compress=compress)
    with pytest.raises(DamagedError):
        chunks.decode_chunk(b"", np.empty(1, np.uint8), compress=True)


@given(st.dictionaries(st.integers(0, 7), st.binary(min_size=1, max_size=50)))
def test_shards_hold_their_chunks(parts: dict[int, bytes]) -> None:
    shard = chunks.pack_shard(parts, 8)
    assert chunks.unpack_shard(shard, 8) == parts
    with pytest.raises(DamagedError):
        chunks.unpack_shard(shard[:-1], 8)
