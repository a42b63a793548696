import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SIDE, Tiny, write_onnx

from featcache import Cache, CacheError
from pipeline import extract
from pipeline.data.coco import load_coco, read_image
from pipeline.data.images import UnreadableImageError
from pipeline.data.transforms import view_to_original
from pipeline.detectors.base import Features
from pipeline.detectors.onnx import OnnxDetector
from pipeline.detectors.registry import build_detector
from pipeline.errors import PipelineError, UsageError

ROOT = Path(__file__).parents[1]


def same(first: Path, second: Path) -> bool:
    """Whether two caches hold equal values for every image and view."""
    one, other = Cache(first), Cache(second)
    for view in one.views:
        assert one.done(view).tolist() == other.done(view).tolist()
        for index in np.flatnonzero(one.done(view)).tolist():
            a, b = one.entry(index, view), other.entry(index, view)
            fields = [(a.maps[name], b.maps[name]) for name in a.maps]
            fields += [(getattr(a, name), getattr(b, name)) for name in ("queries", "boxes", "scores", "labels")]
            if not all(torch.equal(x, y) for x, y in fields):
                return False
    return one.spec == other.spec or one.spec.fingerprint == other.spec.fingerprint


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_cache_holds_what_the_detector_gives(tiny: Tiny, tmp_path: Path, batch_size: int) -> None:
    views = ("orig", "hflip")
    path = extract.main(**tiny.arguments, cache=tmp_path / "c", codec="none", views=views, batch_size=batch_size)
    cache, detector = Cache(path), build_detector(str(tiny.toml), tiny.weights)
    coco = load_coco(tiny.annotations, tiny.images)
    assert cache.views == views
    for view in views:
        assert cache.done(view).all()
        for index, info in enumerate(coco.images):
            features = detector.detect(detector.transform(read_image(coco, index), view)[None])
            entry = cache.entry(index, view)
            assert entry.info == info
            assert entry.input_hw == (SIDE, SIDE)
            for name in ("queries", "boxes", "scores", "labels"):
                assert torch.equal(getattr(entry, name), getattr(features, name)[0])
            for name, values in features.maps.items():
                assert torch.equal(entry.maps[name], values[0])


def test_ground_truth_and_categories_are_inside(tiny: Tiny, tmp_path: Path) -> None:
    cache, coco = Cache(extract.main(**tiny.arguments, cache=tmp_path / "c")), load_coco(tiny.annotations)
    assert cache.spec.recipe["categories"] == list(coco.categories)
    assert cache.spec.source["encoder"] == ["e8", "e16"]
    assert cache.spec.dataset["annotations_sha256"] == coco.sha256
    for index, truth in enumerate(coco.ground_truth):
        kept = cache.ground_truth(index)
        assert kept.rles == truth.rles
        assert kept.ids.tolist() == truth.ids.tolist()
        assert kept.boxes_xywh.tolist() == truth.boxes_xywh.tolist()


def test_boxes_of_the_flipped_view_are_in_its_own_frame(tiny: Tiny, tmp_path: Path) -> None:
    """A random detector is not symmetric, so only the frame can be checked."""
    cache = Cache(extract.main(**tiny.arguments, cache=tmp_path / "c", views=("hflip",)))
    entry = cache.entry(0, "hflip")
    hw = (entry.info.height, entry.info.width)
    mirrored = view_to_original(entry.boxes, hw, "hflip")
    straight = view_to_original(entry.boxes, hw, "orig")
    torch.testing.assert_close(
        mirrored[:, 0] + straight[:, 2], torch.full((len(mirrored),), hw[1], dtype=torch.float64)
    )


def detect_then(action: Callable[[int], object]) -> Callable[[Any, torch.Tensor], Features]:
    """`OnnxDetector.detect` that calls `action(number of the call)` after each batch; the dry run is not counted."""
    original, calls = OnnxDetector.detect, iter(range(1, 1000))

    def detect(self: OnnxDetector, images: torch.Tensor) -> Features:
        features = original(self, images)
        action(next(calls))
        return features

    return detect


def test_ctrl_c_ends_the_batch_in_hand_and_the_same_command_goes_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract.main(**tiny.arguments, cache=tmp_path / "whole", views=("orig", "hflip"), batch_size=2)
    arguments = {**tiny.arguments, "cache": tmp_path / "part", "views": ("orig", "hflip"), "batch_size": 2}
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(
            OnnxDetector, "detect", detect_then(lambda call: call == 2 and os.kill(os.getpid(), signal.SIGINT))
        )
        with pytest.raises(PipelineError, match="stopped by Ctrl-C with 12 of 16 images to do") as caught:
            extract.main(**arguments)
    assert caught.value.hint == "run the same command again to go on"
    assert signal.getsignal(signal.SIGINT) is before
    assert Cache(tmp_path / "part").done("orig").sum() == 4
    assert same(extract.main(**{**arguments, "batch_size": 3}), whole)


@pytest.mark.parametrize("call", [1, 3])
def test_a_killed_extraction_run_again_ends_equal(tiny: Tiny, tmp_path: Path, call: int) -> None:
    script = f"""
import os, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pipeline import extract
from pipeline.detectors.onnx import OnnxDetector
from test_extract import detect_then
OnnxDetector.detect = detect_then(lambda number: number == {call} and os._exit(9))
extract.main(detector={str(tiny.toml)!r}, weights=Path({str(tiny.weights)!r}), images=Path({str(tiny.images)!r}),
             annotations=Path({str(tiny.annotations)!r}), cache=Path({str(tmp_path / "killed")!r}), batch_size=2)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 9
    whole = extract.main(**tiny.arguments, cache=tmp_path / "whole", batch_size=2)
    assert same(extract.main(**tiny.arguments, cache=tmp_path / "killed", batch_size=2), whole)


def test_nothing_is_detected_twice(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract.main(**tiny.arguments, cache=tmp_path / "c")
    calls: list[int] = []
    monkeypatch.setattr(OnnxDetector, "detect", detect_then(calls.append))
    extract.main(**tiny.arguments, cache=tmp_path / "c")
    assert calls == []


def test_unreadable_images_are_listed_at_the_end_and_made_up_for_later(tiny: Tiny, tmp_path: Path) -> None:
    whole = extract.main(**tiny.arguments, cache=tmp_path / "whole")
    coco = load_coco(tiny.annotations, tiny.images)
    kept = {index: coco.path(index).read_bytes() for index in (2, 5)}
    coco.path(2).write_bytes(kept[2][:60])
    coco.path(5).unlink()
    with pytest.raises(UnreadableImageError, match="2 images could not be read") as caught:
        extract.main(**tiny.arguments, cache=tmp_path / "c")
    for index in kept:
        assert coco.images[index].file_name in caught.value.message
    assert np.flatnonzero(~Cache(tmp_path / "c").done("orig")).tolist() == [2, 5]
    for index, content in kept.items():
        coco.path(index).write_bytes(content)
    assert same(extract.main(**tiny.arguments, cache=tmp_path / "c"), whole)


def test_strict_stops_at_the_first_unreadable_image(tiny: Tiny, tmp_path: Path) -> None:
    coco = load_coco(tiny.annotations, tiny.images)
    coco.path(4).write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=coco.images[4].file_name):
        extract.main(**tiny.arguments, cache=tmp_path / "c", strict=True, batch_size=2)
    assert Cache(tmp_path / "c").done("orig").tolist() == [True] * 4 + [False] * 4


def test_another_codec_limit_or_detector_is_not_mixed_into_a_cache(tiny: Tiny, tmp_path: Path) -> None:
    extract.main(**tiny.arguments, cache=tmp_path / "c", limit=2)
    with pytest.raises(CacheError, match="codec"):
        extract.main(**tiny.arguments, cache=tmp_path / "c", limit=2, codec="fp16")
    with pytest.raises(CacheError, match="dataset"):
        extract.main(**tiny.arguments, cache=tmp_path / "c", limit=3)
    tiny.toml.write_text(tiny.toml.read_text().replace("mean = [0.5", "mean = [0.4"))
    with pytest.raises(CacheError, match=r"source\.transform\.mean"):
        extract.main(**tiny.arguments, cache=tmp_path / "c", limit=2)


def test_shards_together_do_every_image_once(tiny: Tiny, tmp_path: Path) -> None:
    paths = [
        extract.main(**tiny.arguments, cache=tmp_path / f"{number}", shard=extract.Shard(number, 3))
        for number in (1, 2, 3)
    ]
    for path in paths:
        start, stop = Cache(path).spec.recipe["part"]  # for `featcache info`
        assert Cache(path).done().tolist() == [start <= index < stop for index in range(8)]
    done = np.stack([Cache(path).done("orig") for path in paths])
    assert done.sum(0).tolist() == [1] * 8
    assert len({Cache(path).spec.fingerprint for path in paths}) == 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_cannot_be_is_misuse(text: str) -> None:
    with pytest.raises(UsageError, match="shard is"):
        extract.Shard.parse(text)


def test_shard_is_read_from_its_text() -> None:
    assert extract.Shard.parse("2/8") == extract.Shard(2, 8)


def test_categories_of_detector_and_annotations_must_agree(tiny: Tiny, tmp_path: Path) -> None:
    write_onnx(tiny.weights, classes=4)
    with pytest.raises(PipelineError, match="'tiny' gives 4 classes, the annotations have 3 categories"):
        extract.main(**tiny.arguments, cache=tmp_path / "c")
    write_onnx(tiny.weights)
    tiny.toml.write_text(tiny.toml.read_text().replace("top_k = 20", "top_k = 20\nclasses = [1, 3, 8]"))
    with pytest.raises(PipelineError, match=r"only one of them has \[7, 8\]"):
        extract.main(**tiny.arguments, cache=tmp_path / "c")


def test_an_unknown_view_is_misuse(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown view 'vflip'"):
        extract.main(**tiny.arguments, cache=tmp_path / "c", views=("orig", "vflip"))


def test_the_cache_knows_the_command_that_made_it(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded line runs from another folder, and finds its work done."""
    monkeypatch.chdir(tiny.images.parent)
    relative = {name: Path(path).relative_to(tiny.images.parent) for name, path in tiny.arguments.items()}
    relative["detector"] = str(relative["detector"])
    path = extract.main(**relative, cache=tmp_path / "a cache", views=("orig", "hflip"), limit=2)
    words = shlex.split(Cache(path).spec.recipe["command"])
    assert words[:4] == ["python", "-m", "pipeline", "extract"]
    before = _written(path)
    assert len(before) > 10
    again = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert again.returncode == 0
    assert _written(path) == before


def _written(cache: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in (cache / "views").rglob("*") if file.is_file()}
