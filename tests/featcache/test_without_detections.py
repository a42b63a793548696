"""A cache of features alone, without detections or annotations: written, read, and told of by every command."""

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from typer.testing import CliRunner

from featcache import Cache, CacheError, CacheSpec, CacheWriter, ImageInfo, LevelSpec, Loader
from featcache.cli import app
from featcache.errors import BadValueError

IMAGES = 20


def spec(detections: int = 0, query_dim: int = 0) -> CacheSpec:
    levels = (LevelSpec("fine", 4, 8, (6, 5)), LevelSpec("coarse", 16, 4, (2, 2)))
    return CacheSpec(levels=levels, views=("orig", "hflip"), detections=detections, query_dim=query_dim)


def maps(index: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(index)
    return {"fine": torch.randn(8, 6, 5), "coarse": torch.randn(4, 2, 2)}


def fill(path: Path, images: int = IMAGES) -> Path:
    with CacheWriter(path, spec(), [ImageInfo(i, 24, 20, f"{i}.png") for i in range(IMAGES)]) as writer:
        for view in writer.spec.views:
            for index in writer.pending(view)[:images]:
                writer.put(index, view, maps=maps(index), input_hw=(24, 20))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("features") / "cache")


def test_it_comes_back(cache: Path) -> None:
    for index, entry in enumerate(Cache(cache)[i] for i in range(IMAGES)):
        assert (entry.maps["fine"] - maps(index)["fine"]).abs().max() < 0.02
        assert [tuple(one.shape) for one in (entry.boxes, entry.scores, entry.labels, entry.queries)] == [
            (0, 4), (0,), (0,), (0, 0),
        ]  # fmt: skip
        assert len(entry.ground_truth) == 0
    assert sum(len(batch) for batch in Loader(Cache(cache), 8)) == 2 * IMAGES


def test_plain_zarr_reads_it(cache: Path) -> None:
    group = zarr.open_group(cache, mode="r")
    assert np.asarray(group["views/orig/boxes"]).shape == (IMAGES, 0, 4)  # pyright: ignore[reportArgumentType]
    assert np.asarray(group["views/hflip/done"]).all()  # pyright: ignore[reportArgumentType]


def test_what_was_stopped_goes_on(cache: Path, tmp_path: Path) -> None:
    fill(tmp_path / "part", images=9)
    assert fill(tmp_path / "part") == tmp_path / "part"
    assert CliRunner().invoke(app, ["diff", str(cache), str(tmp_path / "part")]).exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        "info CACHE", "info CACHE --json", "ls CACHE", "ls CACHE --filter boxes=0 --sort -score --limit 2",
        "show CACHE 3", "show CACHE 3 --out OUT.png", "stats CACHE", "verify CACHE --deep", "diff CACHE CACHE",
        "copy CACHE OUT --codec fp16", "copy CACHE OUT --levels coarse", "prune CACHE --levels coarse --dry-run",
        "estimate CACHE --images 1000",
    ],
)  # fmt: skip
def test_every_command_tells_of_it(cache: Path, tmp_path: Path, words: str) -> None:
    named = words.replace("CACHE", str(cache)).replace("OUT", str(tmp_path / "out"))
    result = CliRunner().invoke(app, named.split())
    assert result.exit_code == 0, result.output


def test_a_part_of_a_detection_is_refused(tmp_path: Path) -> None:
    infos = [ImageInfo(7, 24, 20, "7.png")]
    with CacheWriter(tmp_path / "cache", spec(3, 2), infos) as writer:
        with pytest.raises(BadValueError, match="image 7, view orig: detections without scores, labels, queries"):
            writer.put(0, "orig", maps=maps(0), input_hw=(24, 20), boxes=torch.zeros(1, 4))
        writer.put(0, "orig", maps=maps(0), input_hw=(24, 20))
    assert len(Cache(tmp_path / "cache")[0].boxes) == 0
    with pytest.raises(CacheError, match="must not be negative"):
        spec(-1)
