"""H-DETR and DINO behind the protocol: taps, detections, padding, precision, frozenness."""

from pathlib import Path
from typing import Any

import pytest
import torch
from native_toys import WIDTH, Toy, toy_config, write_toy
from safetensors.torch import load_file, save_file

from featcache import LevelSpec
from pipeline.detectors.base import Features, source_of
from pipeline.detectors.hdetr import Decoded
from pipeline.detectors.native import NativeDetector, build, padding_mask
from pipeline.errors import PipelineError

KINDS = [("hdetr", 4), ("dino", 4), ("dino", 5)]
IMAGE_HW = (96, 130)


@pytest.fixture(params=KINDS, ids=lambda param: f"{param[0]}-{param[1]}")
def toy(tmp_path: Path, request: pytest.FixtureRequest) -> Toy:
    kind, levels = request.param
    return write_toy(tmp_path, kind, levels=levels)


def images(count: int = 1, hw: tuple[int, int] = IMAGE_HW) -> torch.Tensor:
    return torch.randn(count, 3, *hw, generator=torch.Generator().manual_seed(7))


@torch.inference_mode()
def decoded(detector: NativeDetector, batch: torch.Tensor, input_hw: torch.Tensor | None = None) -> Decoded:
    padding = None if input_hw is None else padding_mask(input_hw, *batch.shape[2:])
    return detector.network(batch, padding)


def test_levels_are_the_largest_of_the_transform(toy: Toy) -> None:
    detector = toy.build()
    sizes = {4: (24, 40), 8: (12, 20), 16: (6, 10), 32: (3, 5), 64: (2, 3)}
    strides = [stride for stride in sizes if stride > 4 or toy.table["levels"] == 5]
    expected = [LevelSpec("c1", 4, 32, sizes[4]), *(LevelSpec(f"e{s}", s, WIDTH, sizes[s]) for s in strides)]
    assert list(detector.levels) == expected
    assert detector.encoder == tuple(f"e{s}" for s in strides)
    assert (detector.detections, detector.query_dim, detector.classes) == (20, WIDTH, 5)
    assert detector.category_ids is None
    assert detector.detect(images()).strides == {level.name: level.stride for level in expected}


def test_maps_are_c1_and_the_memory_of_the_encoder_layers_asked_for(toy: Toy) -> None:
    detector = toy.build(encoder_layer=2, extra_encoder_layers=[4])
    network = decoded(detector, images())
    features = detector.detect(images())
    assert torch.equal(features.c1, network.c1)
    for name, level in zip(features.encoder, network.pyramid.split(network.memory[1]), strict=True):
        assert torch.equal(features.maps[name], level)
    for name, level in zip(features.encoder, network.pyramid.split(network.memory[3]), strict=True):
        assert torch.equal(features.maps[f"{name}_l4"], level)
        assert not torch.equal(features.maps[f"{name}_l4"], features.maps[name])
    assert [level.name for level in detector.levels] == list(features.maps)
    for level in detector.levels:
        assert features.maps[level.name].shape[1] == level.channels
        assert features.maps[level.name].shape[2:] == tuple(-(-side // level.stride) for side in IMAGE_HW)


def test_detections_are_the_best_pairs_of_the_last_layer(toy: Toy) -> None:
    detector = toy.build()
    network, features = decoded(detector, images()), detector.detect(images())
    probs = network.logits[-1][0].sigmoid()
    order = probs.flatten().argsort(descending=True)[:20]
    assert torch.equal(features.scores[0], probs.flatten()[order])
    assert torch.equal(features.labels[0], order % 5)
    assert torch.equal(features.boxes[0], network.boxes[-1][0, order // 5])
    assert torch.equal(features.queries[0], network.states[-1][0, order // 5])
    assert bool((features.boxes >= 0).all() and (features.boxes <= 1).all())


def test_without_duplicates_each_query_comes_once_with_its_best_class(toy: Toy) -> None:
    detector = toy.build(de_duplicate=True)
    assert detector.detections == 12
    network, features = decoded(detector, images()), detector.detect(images())
    best, labels = network.logits[-1][0].sigmoid().max(-1)
    order = best.argsort(descending=True)
    assert torch.equal(features.scores[0], best[order])
    assert torch.equal(features.labels[0], labels[order])
    assert torch.equal(features.queries[0], network.states[-1][0, order])


def test_unused_columns_are_dropped_before_the_best_are_chosen(tmp_path: Path) -> None:
    detector = write_toy(tmp_path, classes="coco-91", columns=None).build()
    assert detector.classes == 80
    assert detector.category_ids is not None
    assert (detector.category_ids[0], detector.category_ids[-1]) == (1, 90)
    probs = decoded(detector, images()).logits[-1][0].sigmoid()[:, list(detector.category_ids)]
    features = detector.detect(images())
    order = probs.flatten().argsort(descending=True)[:20]
    assert torch.equal(features.scores[0], probs.flatten()[order])
    assert torch.equal(features.labels[0], order % 80)


def test_padding_of_maps_is_zero_and_the_rest_is_what_the_network_gives(toy: Toy) -> None:
    detector = toy.build()
    batch, input_hw = images(2), torch.tensor([[96, 70], [41, 130]])
    for row, (h, w) in enumerate(input_hw.tolist()):
        batch[row, :, h:], batch[row, :, :, w:] = 0, 0
    network, features = decoded(detector, batch, input_hw), detector.detect(batch, input_hw)
    raw = dict(zip(features.encoder, network.pyramid.split(network.memory[3]), strict=True)) | {"c1": network.c1}
    for name, values in features.maps.items():
        for row in range(2):
            h, w = (-(-int(side) // features.strides[name]) for side in input_hw[row])
            assert torch.count_nonzero(values[row, :, h:]) == torch.count_nonzero(values[row, :, :, w:]) == 0
            torch.testing.assert_close(values[row, :, :h, :w], raw[name][row, :, :h, :w])
            cut = features.image(row).maps[name]
            assert torch.equal(cut[0], values[row, :, :h, :w])
    assert torch.equal(features.input_hw, input_hw)


def test_a_batch_is_its_images_one_by_one(toy: Toy) -> None:
    detector, batch = toy.build(), images(3)
    input_hw = torch.tensor([[96, 70], [41, 130], [96, 130]])
    for sizes in (None, input_hw):
        together = detector.detect(batch, sizes)
        for row in range(3):
            alone = detector.detect(batch[row : row + 1], None if sizes is None else sizes[row : row + 1])
            assert_equal(together, alone, row)


def assert_equal(together: Features, alone: Features, row: int) -> None:
    for name in together.maps:
        assert torch.equal(together.maps[name][row], alone.maps[name][0])
    for name in ("queries", "boxes", "scores", "labels", "input_hw"):
        assert torch.equal(getattr(together, name)[row], getattr(alone, name)[0])


def test_it_is_frozen_and_what_it_gives_can_train_a_head(toy: Toy) -> None:
    detector = toy.build()
    before = {name: tensor.clone() for name, tensor in detector.network.state_dict().items()}
    head = torch.nn.Conv2d(WIDTH, 2, 1)
    features = detector.detect(images())
    head(features.levels[0]).sum().backward()
    assert head.weight.grad is not None
    assert not any(parameter.requires_grad for parameter in detector.network.parameters())
    assert not any(module.training for module in detector.network.modules())
    after = detector.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_dino_gives_its_queries_before_the_last_norm_if_asked(tmp_path: Path) -> None:
    toy = write_toy(tmp_path, "dino")
    normed, raw = toy.build(), toy.build(query_tap="raw")
    assert normed.identity != raw.identity
    before, after = raw.detect(images()), normed.detect(images())
    assert torch.equal(before.boxes, after.boxes)
    with torch.no_grad():
        torch.testing.assert_close(normed.network.norm(before.queries), after.queries)  # pyright: ignore[reportCallIssue]


def test_an_image_with_fewer_tokens_than_queries_gives_fewer_detections(tmp_path: Path) -> None:
    features = write_toy(tmp_path, queries=40).build(top_k=500).detect(images(hw=(32, 32)))
    assert features.scores.shape == (1, (16 + 4 + 1 + 1) * 5)


def test_half_precision_is_for_the_backbone_and_its_projections_only(toy: Toy) -> None:
    detector = toy.build(amp="bf16")
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: output.dtype})

    for name, module in detector.network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_hook(note(name))
    features = detector.detect(images())
    for name, dtype in seen.items():
        convolution = name.startswith(("backbone.", "encoder.input_proj."))
        assert dtype == (torch.bfloat16 if convolution else torch.float32), name
    assert {values.dtype for values in features.maps.values()} == {torch.float32}
    exact = toy.build().detect(images())
    assert 0 < (features.levels[0] - exact.levels[0]).norm() / exact.levels[0].norm() < 0.1


def test_weights_of_half_precision_become_single(toy: Toy) -> None:
    state = load_file(toy.weights)
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, toy.weights)
    network = toy.build().network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    name = "layers.0.linear1.weight"
    assert torch.equal(network.state_dict()[name], state[name].half().float())


def test_identity_knows_the_weights_and_what_changes_numbers(toy: Toy, tmp_path: Path) -> None:
    first = toy.build()
    for changes in ({"top_k": 7}, {"summary": "other"}):
        assert toy.build(**changes).identity == first.identity
    for changes in ({"encoder_layer": 2}, {"extra_encoder_layers": [1]}, {"de_duplicate": True}, {"amp": "bf16"}):
        assert toy.build(**changes).identity != first.identity
    assert source_of(first)["encoder"] == list(first.encoder)
    (tmp_path / "other").mkdir()
    other = write_toy(tmp_path / "other", toy.table["kind"], seed=1, levels=toy.table["levels"])
    assert other.build().identity != first.identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": None}, "columns goes with classes = 'contiguous'"),
        ({"classes": "coco-91"}, "columns goes with classes = 'contiguous'"),
        ({"encoder_layer": 5}, r"encoder layer 5 is not among 1\.\.4"),
        ({"extra_encoder_layers": [0]}, r"encoder layer 0 is not among 1\.\.4"),
        ({"extra_encoder_layers": [4]}, "extra_encoder_layers repeats a layer"),
        ({"levels": 5}, "levels is 5, expected 4"),
        ({"query_tap": "raw"}, "query_tap is a choice of kind = 'dino'"),
        ({"top_k": 0}, "top_k is 0"),
        ({"backbone": "resnet101"}, "backbone is 'resnet101'"),
        ({"query": 3}, "unknown key 'query'"),
    ],
)
def test_a_wrong_toml_is_told_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        toy_config(**changes)


def test_devices_that_are_not_there_are_named(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PipelineError, match="no GPU for 'cuda:1'"):
        build(toy.table, toy.toml, toy.weights, device="cuda:1")
    with pytest.raises(PipelineError, match="unknown device 'tpu'"):
        build(toy.table, toy.toml, toy.weights, device="tpu")
