import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import Tiny, write_tiny

from featcache import Cache
from pipeline import evaluate, extract, predict, train
from pipeline.data.images import UnreadableImageError, open_image
from pipeline.errors import PipelineError, UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path, Path]:
    """Pictures and detector, a cache of them without loss, and a run of the head without parameters."""
    folder = tmp_path_factory.mktemp("predict")
    tiny = write_tiny(folder / "data")
    cache = extract.main(**tiny.arguments, cache=folder / "cache", codec="none")
    return tiny, cache, train.main(cache=cache, head="baseline", run=folder / "run")


def run_predict(tiny: Tiny, run: Path, images: str, out: Path) -> Path:
    return predict.main(detector=str(tiny.toml), weights=tiny.weights, run=run, images=images, out=out, min_score=0.1)


def test_live_results_equal_those_from_the_cache(trained: tuple[Tiny, Path, Path], tmp_path: Path) -> None:
    tiny, cache, run = trained
    out = run_predict(tiny, run, str(tiny.images), tmp_path / "out")
    evaluate.main(cache=cache, run=run)
    assert_same_results(out, run)
    assert {record["id"] for record in json.loads((out / "images.json").read_text())} == {
        info.id for info in Cache(cache).images
    }


def test_views_of_live_images_equal_those_from_the_cache(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "data")
    views = ("orig", "hflip", "lsj1", "scale0.5")
    cache = extract.main(**tiny.arguments, cache=tmp_path / "cache", codec="none", views=views)
    settings = {"hidden": "8", "roi": "8", "image_layers": "1", "box_layers": "1", "heads": "2", "steps": "2"}
    run = train.main(cache=cache, head="mask-frozen-detr", run=tmp_path / "run", settings=settings)
    options: dict[str, Any] = {
        "detector": str(tiny.toml),
        "weights": tiny.weights,
        "run": run,
        "images": str(tiny.images),
    }
    plain = predict.main(**options, out=tmp_path / "plain")
    out = predict.main(**options, out=tmp_path / "out", views=views[1:])
    assert (plain / "results.json").read_bytes() != (out / "results.json").read_bytes()
    evaluate.main(cache=cache, run=run, views=["all"])
    assert_same_results(out, run)
    with pytest.raises(UsageError, match="unknown view 'vflip'"):
        predict.main(**options, out=tmp_path / "no", views=["vflip"])


def assert_same_results(predicted: Path, evaluated: Path) -> None:
    live = json.loads((predicted / "results.json").read_text())
    masks, boxes = (json.loads((evaluated / name).read_text()) for name in ("results.json", "boxes.json"))
    cached = [{**box, **mask} for mask, box in zip(masks, boxes, strict=True)]
    key = lambda result: (result["image_id"], -result["score"], result["category_id"], result["bbox"])  # noqa: E731
    for one, other in zip(sorted(live, key=key), sorted(cached, key=key), strict=True):
        assert one["segmentation"] == other["segmentation"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-4)


def test_every_image_has_an_overlay_and_the_first_are_on_the_sheet(
    trained: tuple[Tiny, Path, Path], tmp_path: Path
) -> None:
    tiny, _, run = trained
    out = run_predict(tiny, run, str(tiny.images), tmp_path / "out")
    files = sorted(tiny.images.iterdir())
    assert sorted(file.stem for file in (out / "overlays").iterdir()) == [file.stem for file in files]
    drawn, plain = open_image(out / "overlays" / f"{files[0].stem}.jpg"), open_image(files[0])
    assert drawn.size == plain.size
    assert not np.array_equal(np.asarray(drawn), np.asarray(plain))
    assert open_image(out / "sheet.jpg").width > 1000


def test_one_file_and_names_that_are_no_numbers(trained: tuple[Tiny, Path, Path], tmp_path: Path) -> None:
    tiny, _, run = trained
    open_image(sorted(tiny.images.iterdir())[0]).save(tmp_path / "beach.png")
    out = run_predict(tiny, run, str(tmp_path / "beach.png"), tmp_path / "out")
    (record,) = json.loads((out / "images.json").read_text())
    assert record["id"] == 1
    assert record["file_name"].endswith("beach.png")
    assert {result["image_id"] for result in json.loads((out / "results.json").read_text())} == {1}


def test_unreadable_images_are_listed_and_the_rest_is_done(trained: tuple[Tiny, Path, Path], tmp_path: Path) -> None:
    tiny, _, run = trained
    Image.new("RGB", (40, 40)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UnreadableImageError, match=r"bad\.png"):
        run_predict(tiny, run, str(tmp_path / "*.png"), tmp_path / "out")
    assert [file.name for file in (tmp_path / "out" / "overlays").iterdir()] == ["good.jpg"]


def test_a_head_of_another_detector_is_refused(trained: tuple[Tiny, Path, Path], tmp_path: Path) -> None:
    tiny, _, run = trained
    other = tmp_path / "other.toml"
    other.write_text(tiny.toml.read_text().replace("std = [0.25", "std = [0.5"))
    with pytest.raises(PipelineError, match="other features than the head was trained on"):
        predict.main(detector=str(other), weights=tiny.weights, run=run, images=str(tiny.images), out=tmp_path / "out")


def test_ids_and_names() -> None:
    numbered = [Path("a/000000000139.jpg"), Path("a/000000000285.jpg")]
    assert predict.image_ids(numbered) == [139, 285]
    assert predict.overlay_names(numbered) == ["000000000139.jpg", "000000000285.jpg"]
    twice = [Path("a/7.jpg"), Path("b/7.jpg"), Path("b/x.jpg")]
    assert predict.image_ids(twice) == [1, 2, 3]
    assert predict.overlay_names(twice) == ["1-7.jpg", "2-7.jpg", "3-x.jpg"]
