import json
from pathlib import Path

import pytest
from tiny import Tiny, write_tiny

from pipeline.config import from_table
from pipeline.detectors.base import source_of
from pipeline.detectors.onnx import OnnxConfig
from pipeline.detectors.registry import build_detector, detector_table, list_detectors
from pipeline.errors import PipelineError


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return write_tiny(tmp_path)


def test_every_shipped_config_is_whole() -> None:
    rows = list_detectors()
    assert {"deimv2-femto", "deimv2-atto"} <= {row["name"] for row in rows}
    for row in rows:
        table, file = detector_table(row["name"])
        assert table["name"] == row["name"] == file.stem
        assert row["summary"]
        assert from_table(OnnxConfig, table, str(file)).top_k > 0


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
    assert "onnx" in caught.value.hint
