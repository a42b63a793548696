"""One test of what `FrozenDetector` promises, for every kind of detector there is."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from native_toys import write_toy
from tiny import write_coco, write_onnx, write_tiny
from tiny_hf import FAMILIES, write_hf
from torch import Tensor, nn

from featcache import Cache
from pipeline import extract, train
from pipeline.data.coco import load_coco, read_image
from pipeline.detectors import hf
from pipeline.detectors.base import Features, FrozenDetector, source_of
from pipeline.detectors.registry import KINDS, build_detector


@dataclass(frozen=True)
class Case:
    """A small detector of one kind, as a user names it."""

    name: str
    weights: Path | None
    files: tuple[Path, ...]
    """Everything it is made of."""

    def build(self) -> FrozenDetector:
        return build_detector(self.name, self.weights)


def onnx_case(folder: Path) -> Case:
    tiny = write_tiny(folder)
    return Case(str(tiny.toml), tiny.weights, (tiny.toml, tiny.weights))


def onnx_case_of_fixed_batch(folder: Path) -> Case:
    case = onnx_case(folder)
    assert case.weights is not None
    write_onnx(case.weights, batch=1)
    return case


def native_case(folder: Path, kind: str, **changes: Any) -> Case:
    toy = write_toy(folder, kind, columns=3, **changes)
    lines = [f"{key} = {json.dumps(value)}" for key, value in toy.table.items() if key != "transform"]
    transform = [f"{key} = {json.dumps(value)}" for key, value in toy.table["transform"].items()]
    toy.toml.write_text("\n".join([*lines, "[transform]", *transform]))
    return Case(str(toy.toml), toy.weights, (toy.toml, toy.weights))


def hf_case(folder: Path, family: str) -> Case:
    write_hf(folder / family, family)
    return Case(f"hf:{folder / family}", None, tuple((folder / family).iterdir()))


CASES: dict[str, Callable[[Path], Case]] = {
    "onnx": onnx_case,
    "onnx, batch of 1": onnx_case_of_fixed_batch,
    "hdetr": lambda folder: native_case(folder, "hdetr"),
    "hdetr, two encoder layers": lambda folder: native_case(
        folder, "hdetr", encoder_layer=3, extra_encoder_layers=[1], de_duplicate=True
    ),
    "dino": lambda folder: native_case(folder, "dino"),
    "dino, 5 scales": lambda folder: native_case(folder, "dino", levels=5),
    **{f"hf {family}": lambda folder, family=family: hf_case(folder, family) for family in FAMILIES},
}


@pytest.fixture(autouse=True)
def _offline(no_network: None) -> None:
    pass


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return CASES[request.param](tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def detector(case: Case) -> FrozenDetector:
    return case.build()


def batch(input_hw: tuple[int, int], count: int = 2) -> Tensor:
    return torch.rand(count, 3, *input_hw, generator=torch.Generator().manual_seed(3))


def tensors(features: Features) -> dict[str, Tensor]:
    return {**features.maps, **{key: getattr(features, key) for key in ("queries", "boxes", "scores", "labels")}}


def state_sha256(case: Case, detector: FrozenDetector) -> str:
    """Of every file it is made of, and of every tensor it holds."""
    content = hashlib.sha256()
    for file in case.files:
        content.update(file.read_bytes())
    network = getattr(detector, "network", None)
    if isinstance(network, nn.Module):
        for name, value in network.state_dict().items():
            content.update(name.encode() + value.numpy().tobytes())
    return content.hexdigest()


def test_no_kind_is_left_out() -> None:
    assert set(KINDS) <= set(CASES)
    assert set(hf.FAMILIES) <= {name.removeprefix("hf ") for name in CASES}


def test_what_it_says_about_itself_holds_together(detector: FrozenDetector) -> None:
    strides = {level.name: level.stride for level in detector.levels}
    assert len(strides) == len(detector.levels)
    assert strides["c1"] == 4
    assert set(detector.encoder) < set(strides)
    assert [strides[name] for name in detector.encoder] == sorted({strides[name] for name in detector.encoder})
    assert detector.detections > 0
    assert detector.classes == 3
    assert detector.category_ids is None or list(detector.category_ids) == sorted(set(detector.category_ids))
    source = json.loads(json.dumps(source_of(detector)))
    assert source["encoder"] == list(detector.encoder)
    assert source["transform"]["size"] == detector.transform.size
    assert len(source["weights_sha256"]) == 64


@pytest.mark.parametrize("off", [0, 13])
def test_it_gives_what_it_announced(detector: FrozenDetector, off: int) -> None:
    largest = detector.transform.largest_hw()
    square = detector.transform.resize == "square"
    height, width = largest if square else (largest[0] - off, largest[1] - 2 * off)
    features = detector.detect(batch((height, width)))
    assert features.strides == {level.name: level.stride for level in detector.levels}
    assert features.encoder == detector.encoder
    assert list(features.maps) == [level.name for level in detector.levels]
    for level in detector.levels:
        grid = (-(-height // level.stride), -(-width // level.stride))
        assert features.maps[level.name].shape == (2, level.channels, *grid)
        assert grid == level.max_hw if (height, width) == largest else max(grid) <= max(level.max_hw)
    n = features.scores.shape[1]
    assert n == detector.detections
    assert features.queries.shape == (2, n, detector.query_dim)
    assert features.boxes.shape == (2, n, 4)
    assert features.input_hw.tolist() == [[height, width]] * 2
    assert (features.input_hw.dtype, features.labels.dtype) == (torch.int64, torch.int64)
    for name, tensor in tensors(features).items():
        assert name == "labels" or tensor.dtype == torch.float32
        assert bool(torch.isfinite(tensor).all())


def test_detections_are_boxes_scores_and_labels_of_the_view(detector: FrozenDetector) -> None:
    features = detector.detect(batch(detector.transform.largest_hw()))
    assert 0 <= float(features.boxes.min()) < float(features.boxes.max()) <= 1
    assert 0 < float(features.scores.min()) < float(features.scores.max()) < 1
    assert bool((features.scores[:, 1:] <= features.scores[:, :-1]).all())
    assert 0 <= int(features.labels.min()) <= int(features.labels.max()) < detector.classes
    assert len(features.queries.flatten(0, 1).unique(dim=0)) > 2


def test_a_batch_is_its_images_one_by_one(detector: FrozenDetector) -> None:
    """Bit by bit, on a processor: a resumed extraction batches differently."""
    images = batch(detector.transform.largest_hw(), 3)
    together = tensors(detector.detect(images))
    for row in range(3):
        alone = tensors(detector.detect(images[row : row + 1]))
        for name, tensor in together.items():
            assert torch.equal(tensor[row : row + 1], alone[name]), name


def test_the_same_again_gives_the_same(case: Case, detector: FrozenDetector) -> None:
    images = batch(detector.transform.largest_hw())
    again = case.build()
    assert again.identity == detector.identity
    first, second = tensors(detector.detect(images)), tensors(again.detect(images))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_it_is_frozen(case: Case, detector: FrozenDetector) -> None:
    before = state_sha256(case, detector)
    features = detector.detect(batch(detector.transform.largest_hw()))
    assert not any(tensor.requires_grad for tensor in tensors(features).values())
    network = getattr(detector, "network", None)
    if isinstance(network, nn.Module):
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not any(module.training for module in network.modules())
    assert state_sha256(case, detector) == before


def test_an_extraction_leaves_it_as_it_was(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds what it gives, and not a bit of its weights has changed."""
    built: list[FrozenDetector] = []
    monkeypatch.setattr(extract, "build_detector", lambda *a, **k: built.append(build_detector(*a, **k)) or built[0])
    before = state_sha256(case, case.build())
    annotations = write_coco(tmp_path)
    cache = extract.main(
        detector=case.name, weights=case.weights, images=tmp_path / "images", annotations=annotations,
        cache=tmp_path / "cache", codec="none", batch_size=3,
    )  # fmt: skip
    (detector,) = built
    assert state_sha256(case, detector) == before
    entry, coco = Cache(cache)[4], load_coco(annotations, tmp_path / "images")
    for name, tensor in tensors(detector.detect(detector.transform(read_image(coco, 4))[None])).items():
        stored = entry.maps[name] if name in entry.maps else getattr(entry, name)
        assert torch.equal(stored, tensor[0])


@pytest.mark.parametrize("kind", ["hdetr", "dino, 5 scales", "hf rt_detr", "hf detr"])
def test_a_head_trains_on_its_cache(kind: str, tmp_path: Path) -> None:
    case, annotations = CASES[kind](tmp_path), write_coco(tmp_path / "data")
    cache = extract.main(
        detector=case.name, weights=case.weights, images=tmp_path / "data" / "images", annotations=annotations,
        cache=tmp_path / "cache",
    )  # fmt: skip
    settings = {"steps": "3", "batch_size": "2", "roi": "8", "warmup": "0"}
    run = train.main(cache=cache, head="unet", run=tmp_path / "run", settings=settings)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3
