"""AP after each layer of the decoder: the last layer's is the head's own."""

import json
from pathlib import Path

import pytest
from discs import write_discs

from pipeline import evaluate, layer_ap, train
from pipeline.errors import PipelineError

SETTINGS = {
    "steps": "12", "batch_size": "3", "lr": "3e-3", "clip": "1.0", "schedule": "cosine", "hidden": "16", "heads": "2",
    "feed_forward": "32", "layers": "2", "queries": "6", "mask_points": "128",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("layers") / "cache")


@pytest.mark.parametrize("head", ["mask2former", "mask-dino"])
def test_the_last_layer_is_the_head(cache: Path, tmp_path: Path, head: str) -> None:
    run = train.main(cache=cache, head=head, run=tmp_path / head, settings=SETTINGS)
    metrics = evaluate.main(cache=cache, run=run)
    rows = layer_ap.main(cache=cache, run=run)
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert {kind: rows[-1][kind] for kind in ("own_bbox", "segm")} == {k: metrics[k] for k in ("own_bbox", "segm")}
    assert rows[0] != {**rows[-1], "layer": 0}
    assert json.loads((run / "metrics.json").read_text()) == metrics  # of the whole head, as it was
    assert layer_ap.read_layers(run) == rows
    assert not any(path.is_dir() and path.name != "metrics" for path in run.iterdir())
    assert layer_ap.table(rows)[0]["layer"] == "0, before the first"
    assert layer_ap.table(rows)[2]["mask AP50"] == f"{rows[2]['segm']['AP50']:.1f}"


def test_a_head_that_tells_its_masks_once_is_refused(cache: Path, tmp_path: Path) -> None:
    run = train.main(cache=cache, head="baseline", run=tmp_path / "run")
    with pytest.raises(PipelineError, match="tells its masks once"):
        layer_ap.main(cache=cache, run=run)
    with pytest.raises(PipelineError, match=r"no metrics/layers.json") as refused:
        layer_ap.read_layers(run)
    assert "--per-layer" in refused.value.hint
