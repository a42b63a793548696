"""Frames made with few searches: anything reads them, every thread makes the same, and level 1 makes none smaller."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from featcache import chunks, zstd


@pytest.fixture(params=["library", "numcodecs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of making a frame; the second stands in where the library inside numcodecs cannot be reached."""
    if request.param == "numcodecs":
        monkeypatch.setattr(zstd, "_library", None)
    return request.param


def rectified(seed: int = 0) -> np.ndarray:
    """Tokens "t c" of a map after a ReLU, neighbours alike: what C1 looks like."""
    noise = np.random.default_rng(seed).normal(size=(70, 70, 32))
    smooth = noise[3:-3, 3:-3] + noise[:-6, 3:-3] + noise[6:, 3:-3]
    return (np.maximum(smooth, 0) * 40).clip(0, 255).astype(np.uint8).reshape(-1, 32)


@settings(deadline=None)
@given(values=arrays(np.uint8, array_shapes(max_dims=2, max_side=600), elements=st.integers(0, 3)))
def test_frames_are_read_by_any_decoder_and_tell_their_size(values: np.ndarray) -> None:
    frame = zstd.compress(values)
    assert zstd.codec.decode(frame) == values.tobytes()
    assert chunks.content_size(memoryview(frame)) == values.nbytes


def test_what_does_not_compress_fits(way: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8)
    assert zstd.codec.decode(zstd.compress(values)) == values.tobytes()


def test_frames_are_those_of_the_values_in_their_order(way: str) -> None:
    tokens = rectified()
    for values in (tokens.T, tokens[::2], tokens.astype(np.float16)):
        assert zstd.codec.decode(zstd.compress(values)) == values.tobytes()


def test_threads_make_the_same_frames(way: str) -> None:
    maps = [rectified(seed) for seed in range(6)]
    alone = [zstd.compress(tokens) for tokens in maps]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(zstd.compress, maps * 4)) == alone * 4


def test_maps_take_no_more_than_at_level_1() -> None:
    tokens = rectified()
    padded = np.concatenate([tokens, np.zeros_like(tokens)])
    for values in (tokens, padded):
        assert len(zstd.compress(values)) <= 1.01 * len(zstd.codec.encode(values))


def test_the_library_inside_numcodecs_is_reached() -> None:
    assert zstd._library is not None
    assert len(zstd.compress(rectified())) != len(zstd.codec.encode(rectified()))
