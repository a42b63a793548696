"""As few steps as the bound allows: the error is the one asked for, whoever extracts an image and in whatever order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_toy import arrays_of, make_features, make_images, make_spec, make_truth
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.ops import roi_align

from featcache import Cache, CacheError, CacheWriter, codecs, maintain
from featcache.errors import MismatchError
from featcache.spec import MAX_ERROR, CacheSpec
from featcache.stats import level_statistics
from featcache.steps import fewest_steps

Maker = Callable[..., Path]


def textured(channels: int, side: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    """A map behind a ReLU, correlated as those of trained networks, each channel of its own amplitude."""
    generator = torch.Generator().manual_seed(seed)
    noise = avg_pool2d(torch.randn(1, channels, side + 2, side + 2, generator=generator), 3, 1) * 1.5
    coarse = torch.randn(1, channels, side // 6 + 2, side // 6 + 2, generator=generator)
    values = noise + interpolate(coarse, size=(side, side), mode="bilinear") + shift
    return (values * torch.rand(1, channels, 1, 1, generator=generator) * 3).relu()[0]


def stored(values: torch.Tensor, max_error: float) -> tuple[torch.Tensor, int]:
    """The map as a reader gets it, and the largest number stored."""
    encoded = codecs.encode("uint8", values, *codecs.channel_range(values), max_error=max_error)
    return codecs.decode(encoded.tokens.clone(), encoded.scale, encoded.offset, delta=False), int(encoded.tokens.max())


def relative(true: torch.Tensor, other: torch.Tensor) -> float:
    return float((true - other).norm() / true.norm())


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.5])
def test_means_of_blocks_are_as_exact_as_asked(shift: float) -> None:
    values = textured(24, 200, shift=shift)
    got, steps = stored(values, max_error=0.0025)
    assert 128 < steps < 255
    assert relative(avg_pool2d(values, 3), avg_pool2d(got, 3)) == pytest.approx(0.0025, rel=0.12)
    finer, _ = stored(values, max_error=0.0023)
    assert relative(avg_pool2d(values, 3), avg_pool2d(finer, 3)) == pytest.approx(0.0023, rel=0.12)


def test_samples_of_boxes_are_within_the_goal() -> None:
    """14 x 14 RoIs on boxes of 0.05 to 0.4 of the side, as the benchmark: at most 0.3 % off."""
    values = textured(24, 256)
    got, steps = stored(values, MAX_ERROR)
    corners = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 0.6
    sides = 0.05 + 0.35 * torch.rand(40, 2, generator=torch.Generator().manual_seed(1))
    boxes = [torch.cat([corners, corners + sides], 1) * 256]
    assert steps < 255
    assert relative(*(roi_align(x[None].contiguous(), boxes, 14, aligned=True) for x in (values, got))) < 0.003


def test_a_coarse_map_keeps_all_steps() -> None:
    """Its cells are blocks: nothing is averaged, so the same values need more steps."""
    fine = textured(24, 200)
    assert stored(fine, MAX_ERROR)[1] < 255
    assert stored(fine[:, ::4, ::4].contiguous(), MAX_ERROR)[1] == 255


def test_without_a_bound_every_channel_has_255_steps() -> None:
    values = textured(6, 200)
    _, steps = stored(values, 0.0)
    assert steps == 255
    encoded = codecs.encode("uint8", values, *codecs.channel_range(values))
    assert encoded.scale is not None
    torch.testing.assert_close(encoded.scale, (values.amax((1, 2)) - values.amin((1, 2))) / 255)


def test_values_whose_squares_leave_float32_keep_all_steps() -> None:
    fine = textured(6, 200)
    assert stored(fine, MAX_ERROR)[1] < stored(fine * 1e25, MAX_ERROR)[1] == 255


def test_a_large_mean_does_not_excuse_less_than_seven_bits() -> None:
    assert stored(textured(6, 80) + 1000, MAX_ERROR)[1] == 128


@pytest.mark.parametrize("value", [0.0, 5.0, -1e30])
def test_constant_maps_are_exact(value: float) -> None:
    values = torch.full((2, 70, 70), value)
    assert torch.equal(stored(values, MAX_ERROR)[0], values)
    values[0, 3, 4] = value + max(1.0, abs(value))
    assert torch.equal(stored(values, MAX_ERROR)[0][1], values[1])


@pytest.mark.parametrize("values", [textured(5, 150), textured(5, 90, shift=0.4), textured(5, 20) - 3])
def test_the_number_is_that_of_the_definition(values: torch.Tensor) -> None:
    low, high = codecs.channel_range(values)
    for max_error in (0.002, 0.003, 0.005, 0.01):
        side = max(1, values.shape[1] // 64)
        share = (values[:, :: max(1, values.shape[1] // 32)] > low[:, None, None]).double().mean((1, 2))
        noise = ((high - low).double() ** 2 * share).sum() / (12 * 255**2 * side**2)
        energy = avg_pool2d(values.double(), side).square().mean((1, 2)).sum()
        wanted = (255 / max_error * (noise / energy).sqrt()).ceil().clamp(128, 255)
        assert abs(fewest_steps(values, low, high, max_error) - wanted) <= 1  # rounded up from sums in float32
    zeros = torch.zeros_like(values)
    assert fewest_steps(zeros, zeros[:, 0, 0], zeros[:, 0, 0], 0.0025) == 255


def test_half_precision_maps_get_the_steps_of_their_values() -> None:
    values = textured(6, 100).half()
    low, high = codecs.channel_range(values)
    assert int(fewest_steps(values.float(), low, high, 0.002)) == stored(values, 0.002)[1]


def test_the_steps_differ_between_images_and_follow_from_each_alone(make_cache: Maker) -> None:
    """Any order, parts of an extraction and their merge, and a resume: the same arrays."""
    whole = make_cache(6, name="whole", shard=2)
    found = level_statistics(Cache(whole))["c1"]
    assert 128 <= found["steps_min"] < found["steps_max"] < 255
    other = make_cache(6, name="other", shard=2, order=[5, 2, 0])
    make_cache(6, name="other", shard=2, order=[1, 3, 4])
    parts = [
        Cache(make_cache(6, name=f"part{n}", shard=2, order=order)) for n, order in enumerate(([2, 3], [0, 1, 4, 5]))
    ]
    merged = maintain.run(maintain.plan_merge(parts, whole.with_name("merged")))
    mine = arrays_of(whole)
    for path in (other, merged):
        theirs = arrays_of(path)
        for name in mine:
            if "/maps/" not in name:  # their row differences may be chosen otherwise: those lose nothing
                np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
        for index in range(6):
            for name, values in Cache(whole)[index].maps.items():
                assert torch.equal(values, Cache(path)[index].maps[name])


def test_stats_expect_the_error_that_is_there(tmp_path: Path) -> None:
    maps, spec = make_features(0), make_spec(max_error=0.02)
    values = torch.stack([textured(1, 9, seed)[0, :8] + 0.1 for seed in range(6)])[:, :, :9]
    maps["maps"]["c1"] = values
    with CacheWriter(tmp_path / "c", spec, make_images(1), make_truth(1)) as writer:
        writer.put(0, "orig", **maps)
    found = level_statistics(Cache(tmp_path / "c"))["c1"]
    assert found["steps_min"] == found["steps_max"] == 128
    assert found["rounding"] == pytest.approx(relative(values, Cache(tmp_path / "c")[0].maps["c1"]), rel=0.1)


def test_a_cache_begun_without_a_bound_goes_on_without(make_cache: Maker) -> None:
    """As all were that are older than the bound: same name, same arrays as if nothing had been added since."""
    whole = make_cache(4, name="whole", max_error=0.0)
    assert "max_error" not in Cache(whole).spec.to_json()
    path = make_cache(4, name="part", order=[0, 1], max_error=0.0)
    with CacheWriter(path, make_spec(), make_images(4), make_truth(4)) as writer:
        for index in writer.pending("orig"):
            writer.put(index, "orig", **make_features(index))
    mine, theirs = arrays_of(whole), arrays_of(path)
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert level_statistics(Cache(path))["c1"]["steps_min"] == 255


def test_another_bound_is_refused(make_cache: Maker, tmp_path: Path) -> None:
    path = make_cache(2)
    for bound in (0.0, 0.01):
        with pytest.raises(MismatchError, match=r"max_error: cache has 0\.006, now"):
            CacheWriter(path, make_spec(max_error=bound), make_images(2), make_truth(2))
        with pytest.raises(CacheError, match=r"rounded already, within 0\.006"):
            maintain.plan_copy(Cache(path), tmp_path / "new", max_error=bound)
    with pytest.raises(CacheError, match=r"max_error is 1\.5"):
        make_spec(max_error=1.5)


def test_copies_to_uint8_have_the_bound_asked_for(make_cache: Maker, tmp_path: Path) -> None:
    exact = Cache(make_cache(2, codec="none"))
    assert exact.spec.max_error == 0
    for number, bound in enumerate((None, 0.0, 0.006)):
        plan = maintain.plan_copy(exact, tmp_path / str(number), codec="uint8", max_error=bound)
        assert plan.spec.max_error == (MAX_ERROR if bound is None else bound)
        maintain.run(plan)
    direct = Cache(make_cache(2, name="direct"))
    copied = Cache(tmp_path / "2")
    recipe = {**direct.spec.recipe, "copied_from": str(exact.path)}
    assert copied.spec == replace(CacheSpec.from_json(direct.spec.to_json()), recipe=recipe)
    for index in range(2):
        assert torch.equal(copied[index].maps["c1"], direct[index].maps["c1"])
