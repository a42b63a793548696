"""Predicted sizes are those that `du` finds; statistics are those of all values at once."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_toy import make_images, make_spec, make_truth

from featcache import Cache, CacheError, CacheWriter, LevelSpec
from featcache.disk import disk_usage, human_bytes
from featcache.sizes import estimate
from featcache.stats import Running, level_statistics

LEVELS = (LevelSpec("c1", 4, 32, (40, 40)), LevelSpec("e16", 16, 48, (12, 12)))


def write(path: Path, count: int, codec: Any, shard: int, band_rows: int | None = None) -> Cache:
    generator = torch.Generator().manual_seed(0)
    spec = make_spec(levels=(replace(LEVELS[0], band_rows=band_rows), LEVELS[1]), codec=codec)
    with CacheWriter(path, spec, make_images(count), make_truth(count), shard=shard) as writer:
        for index in range(count):
            maps = {
                level.name: torch.randn(
                    level.channels, level.max_hw[0] - index % 4, level.max_hw[1], generator=generator
                )
                for level in LEVELS
            }
            writer.put(
                index,
                "orig",
                maps={name: values.cumsum(1).relu() for name, values in maps.items()},
                queries=torch.randn(7, 4, generator=generator),
                boxes=torch.rand(7, 4, generator=generator),
                scores=torch.rand(7, generator=generator),
                labels=torch.zeros(7, dtype=torch.int64),
                input_hw=(160, 160),
            )
    return Cache(path)


@pytest.mark.parametrize(
    ("codec", "shard", "band_rows"),
    [*product(("uint8", "fp16", "none"), (1, 4), (None,)), ("uint8", 1, 8), ("uint8", 4, 8)],
)
def test_estimate_is_within_five_percent_of_du(tmp_path: Path, codec: Any, shard: int, band_rows: int | None) -> None:
    samples = [
        write(tmp_path / "exact", 12, "none", 1, band_rows),
        write(tmp_path / "same", 12, codec, shard, band_rows),
    ]
    write(tmp_path / "whole", 120, codec, shard, band_rows)
    used = int(subprocess.check_output(["du", "-s", "--block-size=1", tmp_path / "whole"]).split()[0])
    assert disk_usage(tmp_path / "whole")[0] == used
    bound = make_spec(codec=codec).max_error
    for sample in samples:
        found = estimate(sample, 120, codec=codec, max_error=bound, shard=shard, at=tmp_path, probe=False)
        assert found.total_bytes == pytest.approx(used, rel=0.05)
        assert found.files == len(list((tmp_path / "whole/views").rglob("c.*")))


def test_estimate_probes_and_judges_the_space(tmp_path: Path) -> None:
    sample = write(tmp_path / "sample", 4, "uint8", 1)
    found = estimate(sample, 1000, at=tmp_path)
    assert found.images_per_second is not None
    assert found.images_per_second > 0
    assert found.hours == pytest.approx(1000 / found.images_per_second / 3600)
    assert found.fits
    assert not estimate(sample, 10**12, at=tmp_path, probe=False).fits
    assert [entry.name for entry in tmp_path.iterdir()] == ["sample"]


def test_estimate_refuses_what_the_sample_cannot_tell(tmp_path: Path, make_cache: Callable[..., Path]) -> None:
    with pytest.raises(CacheError, match="a sample in uint8 cannot tell the size of fp16"):
        estimate(Cache(make_cache(2)), 10, codec="fp16", at=tmp_path)
    with pytest.raises(CacheError, match="cannot tell the size of uint8 with another max_error"):
        estimate(Cache(make_cache(2, name="other")), 10, max_error=0.0, at=tmp_path)
    with pytest.raises(CacheError, match="no image of the sample"):
        estimate(Cache(make_cache(2, name="empty", order=[])), 10, at=tmp_path)


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (14_600_000, "14.6 MB"), (4.9e12, "4.9 TB")])
def test_human_bytes(count: float, words: str) -> None:
    assert human_bytes(count) == words


def test_statistics_are_those_of_all_values(make_cache: Callable[..., Path]) -> None:
    cache = Cache(make_cache(5, order=[0, 1, 3]))
    found = level_statistics(cache)
    for name in ("c1", "e16"):
        values = torch.cat([cache[i].maps[name].flatten() for i in (0, 1, 3)]).double()
        row = found[name]
        assert (row["count"], row["min"], row["max"]) == (len(values), float(values.min()), float(values.max()))
        assert row["mean"] == pytest.approx(float(values.mean()), abs=1e-6)
        assert row["std"] == pytest.approx(float(values.std(correction=0)), rel=1e-6)
        assert row["zeros"] == float((values == 0).double().mean())
        expected = torch.histc(values.float(), 64, row["histogram_low"], row["histogram_high"])
        assert row["histogram"] == expected.long().tolist()
    assert sum(level_statistics(cache, image_ids=[101, 102])["c1"]["histogram"]) == 10 * 8 * 6


def test_histogram_grows_without_losing_a_value() -> None:
    running = Running()
    for scale in (1e-9, 1.0, 300.0, 0.0):
        running.add(torch.linspace(-1, 1, 101) * scale)
    summary = running.summary()
    assert sum(summary["histogram"]) == summary["count"] == 404
    assert summary["histogram_high"] == 512
    assert summary["zeros"] == 101 / 404
