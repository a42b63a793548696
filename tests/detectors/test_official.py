"""The shipped configs of the official detectors: networks of the right size, the official transform, the taps."""

import pytest
import torch

from pipeline.config import from_table, read_toml, shipped
from pipeline.detectors.checkpoints import OFFICIAL
from pipeline.detectors.native import NativeConfig, build_network
from pipeline.detectors.registry import CARD

ONE_TO_MANY, LABEL_EMBEDDING = 1500 * 256, 92 * 256
"""What the official networks have for training only: queries of the hybrid branch; embeddings of noised labels."""

PARAMETERS = {
    "hdetr-r50": 47_946_073 - ONE_TO_MANY,
    "hdetr-swin-l": 218_079_917 - ONE_TO_MANY,
    "hdetr-swin-l-900": 218_079_917 - ONE_TO_MANY + 600 * 256,
    "dino-r50": 46_893_182 - LABEL_EMBEDDING,
    "dino-swin-l": 217_230_066 - LABEL_EMBEDDING,
    "dino-focalnet-l": 228_122_422 - LABEL_EMBEDDING,
}
"""Counted in the official code, less what this project leaves out."""


def config_of(name: str) -> NativeConfig:
    table = read_toml(shipped("detectors")[name])
    return from_table(NativeConfig, {key: value for key, value in table.items() if key not in CARD}, name)


def test_there_is_a_config_for_each() -> None:
    assert set(OFFICIAL.values()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_official_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = build_network(config_of(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    assert read_toml(shipped("detectors")[name])["parameters"] == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_settings_are_the_official_ones(name: str) -> None:
    config, table = config_of(name), read_toml(shipped("detectors")[name])
    assert config.name == name
    assert config.encoder_layer == 4
    assert config.top_k == (100 if config.kind == "hdetr" else 300)
    assert config.queries == (300 if name in ("hdetr-r50", "hdetr-swin-l") else 900)
    assert config.strides == ((4, 8, 16, 32, 64) if name == "dino-focalnet-l" else (8, 16, 32, 64))
    assert (config.logits, config.query_tap, config.amp, config.de_duplicate) == (91, "normed", "none", False)
    assert 45 < table["box_ap"] < 65
    assert table["weights_name"].endswith(".pth")


@pytest.mark.parametrize("name", PARAMETERS)
def test_images_are_resized_as_in_the_official_evaluation(name: str) -> None:
    transform = config_of(name).transform
    sizes = {(480, 640): (800, 1066), (427, 640): (800, 1199), (640, 426): (1201, 800), (300, 900): (444, 1332)}
    assert {image: transform.network_hw(image) for image in sizes} == sizes
    assert transform.network_hw((800, 1000)) == (800, 1000)
    assert (transform.mean, transform.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
