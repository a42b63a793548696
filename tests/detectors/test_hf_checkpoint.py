"""What `hf:` reads from a checkpoint folder, and what it refuses."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_hf import write_hf

from pipeline.data.transforms import Transform
from pipeline.detectors.hf import build
from pipeline.detectors.hf_checkpoint import classes_of, open_checkpoint, transform_of
from pipeline.errors import PipelineError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(autouse=True)
def _offline(no_network: None) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "model", "deformable_detr")


def set_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def transform_for(folder: Path, **processor: Any) -> Transform:
    set_json(folder / "preprocessor_config.json", **processor)
    return transform_of(open_checkpoint(str(folder)))


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": {"shortest_edge": 480, "longest_edge": 800}}, Transform("shortest", 480, 800, **IMAGENET)),
        ({"size": 800, "max_size": 1333}, Transform("shortest", 800, 1333, **IMAGENET)),  # as older files say it
        ({"size": {"height": 96, "width": 96}}, Transform("square", 96, **IMAGENET)),
        ({"size": {"height": 96, "width": 96}, "do_normalize": False}, Transform("square", 96)),
        (
            {"size": {"height": 96, "width": 96}, "image_mean": [0.5, 0.4, 0.3], "image_std": [1, 1, 0.5]},
            Transform("square", 96, mean=(0.5, 0.4, 0.3), std=(1.0, 1.0, 0.5)),
        ),
        (
            {"size": {"height": 96, "width": 96}, "do_rescale": False, "image_mean": [51] * 3, "image_std": [255] * 3},
            Transform("square", 96, mean=(0.2, 0.2, 0.2)),
        ),
    ],
)
def test_the_transform_is_the_checkpoints_own(folder: Path, processor: dict[str, Any], expected: Transform) -> None:
    assert transform_for(folder, **processor) == expected


@pytest.mark.parametrize("family", ["deformable_detr", "rt_detr", "detr"])
@pytest.mark.parametrize("image_hw", [(50, 64), (70, 50), (64, 64)])
def test_images_become_what_the_checkpoints_processor_makes_of_them(
    tmp_path: Path, family: str, image_hw: tuple[int, int]
) -> None:
    folder = write_hf(tmp_path / "m", family)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8))
    with_pil = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    (theirs,) = with_pil(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(transform_of(open_checkpoint(str(folder)))(image), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"do_resize": False}, "do_resize = False"),
        ({"resample": 3}, "resample = 3"),
        ({"pad_size": {"height": 96, "width": 96}}, "pad_size = "),
        ({"size": {"height": 64, "width": 96}}, "no resize to size = {'height': 64, 'width': 96}"),
        ({"size": {"max_height": 64, "max_width": 96}}, "no resize to size = {'max_height': 64, 'max_width': 96}"),
    ],
)
def test_other_image_processing_is_refused(folder: Path, processor: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        transform_for(folder, **processor)
    assert message in caught.value.message
    assert str(folder / "preprocessor_config.json") in caught.value.message


def test_91_labels_are_cocos_raw_ids_unless_they_are_named_otherwise() -> None:
    unnamed = {i: f"LABEL_{i}" for i in range(91)}
    assert classes_of(unnamed) == "coco-91"
    assert classes_of({**unnamed, 1: "person", 90: "toothbrush"}) == "coco-91"
    assert classes_of({**unnamed, 1: "aardvark", 90: "zebra"}) == "contiguous"
    assert classes_of({i: f"LABEL_{i}" for i in range(80)}) == "contiguous"
    assert classes_of(dict.fromkeys(range(92), "person")) == "contiguous"


def test_identity_is_the_model_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    first = build(str(folder)).identity
    json.dumps(first)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy)
    set_json(copy / "config.json", transformers_version="5.99.0", _name_or_path="x/y")
    assert build(str(copy)).identity == first
    assert build(str(copy)).name == "hf:copy"
    set_json(copy / "config.json", encoder_n_points=2, decoder_n_points=2, num_queries=12, activation_function="gelu")
    assert build(str(copy)).identity["config_sha256"] != first["config_sha256"]
    transform = {**first, "transform": {**first["transform"], "size": 48}}
    set_json(folder / "preprocessor_config.json", size={"shortest_edge": 48, "longest_edge": 96})
    assert build(str(folder)).identity == transform
    state = load_file(folder / "model.safetensors")
    state["model.level_embed"] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert build(str(folder)).identity["weights_sha256"] != first["weights_sha256"]


def test_sharded_weights_are_all_read(folder: Path, tmp_path: Path) -> None:
    whole = build(str(folder))
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    shards = tmp_path / "shards"
    model.save_pretrained(shards, max_shard_size="100KB")
    shutil.copy(folder / "preprocessor_config.json", shards)
    assert len(open_checkpoint(str(shards)).weights) > 1
    image = torch.rand(1, 3, 64, 80)
    sharded = build(str(shards))
    assert len(sharded.network.state_dict()) == len(whole.network.state_dict())
    for ours, theirs in zip(sharded.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(sharded.detect(image).boxes, whole.detect(image).boxes, rtol=0, atol=1e-6)
    changed = open_checkpoint(str(shards)).weights[-1]
    state = load_file(changed)
    save_file({key: value + 1 for key, value in state.items()}, changed, metadata={"format": "pt"})
    assert build(str(shards)).identity["weights_sha256"] != sharded.identity["weights_sha256"]


def test_weights_are_as_they_are_in_the_file_but_float32(folder: Path) -> None:
    """Heads that the files hold apart stay apart, though this architecture may share them."""
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    state = {key: value.half().clone() for key, value in model.state_dict().items()}
    state["class_embed.1.weight"] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = build(str(folder)).network.state_dict()
    assert set(loaded) == set(state)
    for key, value in loaded.items():
        assert torch.equal(value, state[key].float() if value.is_floating_point() else state[key].to(value.dtype))


def test_configs_of_older_releases_load_without_the_network(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m", "deformable_detr-two-stage")
    image = torch.rand(1, 3, 64, 80)
    expected = build(str(folder)).detect(image)
    config = json.loads((folder / "config.json").read_text())
    del config["backbone_config"]
    older = {
        "backbone": "test_resnet",
        "backbone_kwargs": {"in_chans": 3, "out_indices": [2, 3, 4]},
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "dilation": None,
    }
    (folder / "config.json").write_text(json.dumps({**config, **older}))
    assert torch.equal(build(str(folder)).detect(image).boxes, expected.boxes)


def test_a_missing_parameter_is_not_made_up(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.level_embed"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PipelineError, match=r"lacks 1 parameters of .*, such as model\.level_embed"):
        build(str(folder))


def test_folders_that_are_no_checkpoint_are_told_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no folder /nowhere/at/all"):
        build("/nowhere/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match=r"empty has no config\.json"):
        build(str(tmp_path / "empty"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PipelineError, match="has no weights in safetensors") as caught:
        build(str(folder))
    assert "save_pretrained" in caught.value.hint
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(PipelineError, match=r"has no preprocessor_config\.json"):
        build(str(folder))


def test_files_that_are_not_json_are_named(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(PipelineError, match=r"preprocessor_config\.json does not load"):
        build(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(PipelineError, match=r"config\.json is not valid JSON"):
        build(str(folder))


def test_damaged_weights_and_other_models_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PipelineError, match="does not load as a detector"):
        build(str(folder))
    set_json(folder / "config.json", model_type="bert")
    with pytest.raises(PipelineError, match="holds a model of type 'bert'") as caught:
        build(str(folder))
    assert "rt_detr" in caught.value.hint


def test_a_hub_id_without_a_hub_says_so() -> None:
    with pytest.raises(PipelineError, match="'nobody/no-such-model' is no folder here, and the hub") as caught:
        build("nobody/no-such-model")
    assert "hf:DIR" in caught.value.hint


@pytest.mark.parametrize("package", ["transformers", "timm"])
def test_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PipelineError, match=f"need the package '{package}'") as caught:
        build(str(folder))
    assert caught.value.hint == "pip install 'featcache[hf]'"
