"""What the features of a detector look like to a head."""

import pytest
from toy import EQUAL

from featcache import CacheSpec, LevelSpec
from pipeline.errors import PipelineError
from pipeline.heads.base import Widths, encoder_maps


def spec(**source: object) -> CacheSpec:
    levels = [("c1", 4, 64), ("e8", 8, 96), ("e16", 16, 96), ("e8_l2", 8, 96), ("e16_l2", 16, 96)]
    return CacheSpec(
        levels=tuple(LevelSpec(name, stride, channels, (8, 8)) for name, stride, channels in levels),
        detections=10,
        query_dim=48,
        source={"encoder": ["e8", "e16"], **source},
        recipe={"categories": [{"id": 1, "name": "disc"}, {"id": 7, "name": "square"}]},
    )


def test_widths_of_a_cache() -> None:
    widths = Widths.of_cache(spec(encoder_layer=4))
    assert widths.channels == {"c1": 64, "e8": 96, "e16": 96, "e8_l2": 96, "e16_l2": 96}
    assert widths.strides["e16_l2"] == 16
    assert (widths.encoder, widths.query_dim, widths.classes) == (("e8", "e16"), 48, 2)
    assert (widths.encoder_layer, Widths.of_cache(spec()).encoder_layer) == (4, 0)


def test_an_encoder_layer_names_its_maps() -> None:
    widths = Widths.of_cache(spec(encoder_layer=4))
    assert encoder_maps(widths, 0) == encoder_maps(widths, 4) == ("e8", "e16")
    assert encoder_maps(widths, 2) == ("e8_l2", "e16_l2")
    with pytest.raises(PipelineError, match=r"layer 6[\s\S]*extra_encoder_layers = \[6\]"):
        encoder_maps(widths, 6)


def test_a_detector_that_does_not_say_its_layer() -> None:
    with pytest.raises(PipelineError, match="layer 4"):
        encoder_maps(Widths.of_cache(spec()), 4)
    assert encoder_maps(EQUAL, 0) == EQUAL.encoder
