import json
from pathlib import Path

import pytest
from native_toys import write_toy
from tiny import Tiny, write_tiny

from pipeline.config import from_table
from pipeline.detectors.base import source_of
from pipeline.detectors.native import NativeConfig
from pipeline.detectors.onnx import OnnxConfig
from pipeline.detectors.registry import CARD, HF, KINDS, absolute_name, build_detector, detector_table, find_weights
from pipeline.errors import PipelineError, UsageError


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return write_tiny(tmp_path)


def test_a_toml_of_the_user_needs_no_registration(tiny: Tiny) -> None:
    detector = build_detector(str(tiny.toml), tiny.weights)
    assert detector.name == "tiny"
    json.dumps(source_of(detector))


def test_unknown_names_suggest_the_nearest(tiny: Tiny) -> None:
    with pytest.raises(PipelineError, match="unknown detector 'deimv2-fento'") as caught:
        build_detector("deimv2-fento", tiny.weights)
    assert "'deimv2-femto'" in caught.value.hint
    with pytest.raises(PipelineError, match="no weights file"):
        build_detector(str(tiny.toml), tiny.weights.with_name("none"))
    with pytest.raises(PipelineError, match="no config file"):
        build_detector("none.toml", tiny.weights)


def test_unknown_kind_lists_the_known(tiny: Tiny) -> None:
    tiny.toml.write_text(tiny.toml.read_text().replace('kind = "onnx"', 'kind = "onx"'))
    with pytest.raises(PipelineError, match="kind is 'onx'") as caught:
        build_detector(str(tiny.toml), tiny.weights)
    assert caught.value.hint == f"one of: {', '.join(KINDS)}"


def test_weights_beside_the_toml_are_taken_unless_others_are_given(tiny: Tiny) -> None:
    tiny.toml.write_text(tiny.toml.read_text().replace("top_k = 20", 'top_k = 20\nweights = "tiny.onnx"'))
    own = build_detector(str(tiny.toml))
    other = tiny.weights.with_name("other.onnx")
    other.write_bytes(tiny.weights.read_bytes())
    assert own.identity == build_detector(str(tiny.toml), other).identity
    table, file = detector_table(str(tiny.toml))
    assert find_weights(table, file, None) == tiny.weights
    assert find_weights(table, file, other) == other
    tiny.weights.unlink()
    with pytest.raises(PipelineError, match=r"the weights of 'tiny' are missing: no file .*tiny\.onnx"):
        build_detector(str(tiny.toml))


def test_a_detector_without_weights_names_the_official_file(tiny: Tiny) -> None:
    with pytest.raises(PipelineError, match=r"^'tiny' needs its weights\n") as caught:
        build_detector(str(tiny.toml))
    assert caught.value.hint == "pass them: --weights FILE"
    with pytest.raises(
        PipelineError, match=r"'hdetr-r50' needs its weights: the official file is 'r50_hybrid.*36eps\.pth'"
    ):
        build_detector("hdetr-r50")


def test_what_is_for_people_does_not_change_the_identity(tiny: Tiny, tmp_path: Path) -> None:
    before = build_detector(str(tiny.toml), tiny.weights).identity
    card = 'weights_name = "x.onnx"\nparameters = 12\nbox_ap = 1.5'
    tiny.toml.write_text(tiny.toml.read_text().replace("top_k = 20", f"top_k = 20\n{card}"))
    assert build_detector(str(tiny.toml), tiny.weights).identity == before
    assert not set(CARD) & set(before)
    assert not set(CARD) & set(write_toy(tmp_path).build().identity)
    for config in (OnnxConfig, NativeConfig):
        with pytest.raises(PipelineError, match="unknown key 'box_ap'"):  # the registry takes them out
            from_table(config, {"box_ap": 1.0}, "x.toml")


def test_hf_names_have_their_own_weights(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="'hf:some/model' brings its own weights") as caught:
        build_detector("hf:some/model", tiny.weights)
    assert caught.value.hint == "leave out --weights"


def test_names_that_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert absolute_name("deimv2-femto") == "deimv2-femto"
    assert absolute_name("mine.toml") == str(tmp_path / "mine.toml")
    assert absolute_name("hf:model") == f"{HF}{tmp_path / 'model'}"
    assert absolute_name("hf:owner/model") == "hf:owner/model"
