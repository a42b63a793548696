import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.config import from_table, read_toml, shipped
from pipeline.detectors.listing import list_detectors
from pipeline.detectors.native import NativeConfig, build_network
from pipeline.detectors.onnx import OnnxConfig
from pipeline.detectors.registry import CARD, detector_table, find_weights

CARDS = {card.name: card for card in list_detectors()}


def settings(name: str) -> dict[str, object]:
    return {key: value for key, value in read_toml(shipped("detectors")[name]).items() if key not in CARD}


def test_every_shipped_config_is_whole() -> None:
    assert {"deimv2-femto", "deimv2-atto", "shapes-tiny", "hdetr-r50", "dino-r50"} <= set(CARDS)
    for name, card in CARDS.items():
        table, file = detector_table(name)
        assert name == table["name"] == file.stem
        assert card.summary
        assert card.weights
        config = {"onnx": OnnxConfig}.get(card.kind, NativeConfig)
        assert from_table(config, settings(name), str(file)).top_k > 0


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.kind != "onnx"])
def test_cards_of_native_detectors_tell_what_the_network_is(name: str) -> None:
    card, config = CARDS[name], from_table(NativeConfig, settings(name), name)
    with torch.device("meta"):
        network = build_network(config)
    assert card.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert card.backbone == config.backbone
    assert card.queries == config.queries
    layers = ("", *(f"_l{layer}" for layer in config.extra_encoder_layers))
    assert card.levels == ("c1", *(f"e{stride}{layer}" for layer in layers for stride in config.strides))


def test_embedded_weights_are_there() -> None:
    assert CARDS["shapes-tiny"].embedded
    for name, card in CARDS.items():
        table, file = detector_table(name)
        if card.embedded:
            assert find_weights(table, file, None).stat().st_size <= 6_000_000


def test_maps_of_an_onnx_detector_are_its_taps() -> None:
    assert CARDS["deimv2-femto"].levels == ("c1", "e16", "e32")


def test_listing_does_not_wait_for_torch() -> None:
    script = (
        "import sys, pipeline.detectors.listing as listing; listing.list_detectors(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2]).returncode == 0
