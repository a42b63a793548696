"""AP of a head's boxes and masks after each layer of its decoder: which of the two is told early, which is late.

The question of DI-MaskDINO (He et al. 2024, figure 1): there the boxes of the first layers lag behind the masks.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from .contender import Contender, Predict, finite
from .data.sources import Batch, Cached
from .errors import PipelineError
from .evaluation import DETAILS, evaluate_contenders, evaluation_identity, images_to_evaluate
from .files import write_json
from .heads.base import MaskHead, Masks
from .training.checkpoint import check_features, load_head

LAYERS = "layers.json"
"""In `DETAILS`: what `main` returns."""
WORDS = (("own_bbox", "own box"), ("segm", "mask"))
"""What is told of a layer, and what a person calls it."""


def main(*, cache: Path, run: Path, holdout: int = 0, device: str = "cpu") -> list[dict[str, Any]]:
    """The figures of the head of `run` before the first layer (0) and after each: `segm`, and `own_bbox` of its boxes.

    Writes metrics/layers.json into the run. The other arguments are those of `evaluate.main`. Raises PipelineError
    where the head tells its masks once.
    """
    source = Cached(cache, device)
    head, trained = load_head(run, source.device)
    check_features(trained, source.cache.spec, f"cache {source.cache.path}")
    indices = images_to_evaluate(source, holdout)
    first = source.batch([(indices[0], source.cache.views[0])], head.maps_read)
    count = len(head.predict_layers(first.features, first.counts))
    if count == 1:
        raise PipelineError(
            f"the head of {run} tells its masks once, not layer by layer",
            "families with layers: mask2former, mask-dino, di-maskdino",
        )
    with tempfile.TemporaryDirectory(dir=run) as scratch:
        contenders = [
            Contender(Path(scratch) / str(layer), _after(head, layer), maps_read=head.maps_read)
            for layer in range(count)
        ]
        identity = evaluation_identity(source, holdout, indices)
        found = evaluate_contenders(source, contenders, indices, identity=identity, boundary=False)
    rows = [
        {"layer": layer, **{kind: found[contender.folder][kind] for kind in ("own_bbox", "segm")}}
        for layer, contender in enumerate(contenders)
    ]
    (run / DETAILS).mkdir(exist_ok=True)
    write_json(run / DETAILS / LAYERS, rows, indent=2)
    return rows


def table(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """For a person."""
    return [
        {
            "layer": str(row["layer"]) if row["layer"] else "0, before the first",
            **{f"{words} {name}": _figure(row[kind][name]) for kind, words in WORDS for name in ("AP", "AP50", "AP75")},
        }
        for row in rows
    ]


def read_layers(run: Path) -> list[dict[str, Any]]:
    """metrics/layers.json of a run; raises PipelineError where there is none."""
    try:
        return json.loads((run / DETAILS / LAYERS).read_text())
    except FileNotFoundError:
        raise PipelineError(
            f"{run} has no {DETAILS}/{LAYERS}", f"python -m pipeline evaluate --cache DIR --run {run} --per-layer"
        ) from None


def _after(head: MaskHead, layer: int) -> Predict:
    def predict(batch: Batch) -> Masks:
        layers = batch.once("layers", lambda: head.predict_layers(batch.features, batch.counts))
        return finite(layers[layer][0], batch)

    return predict


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
