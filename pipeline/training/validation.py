"""Evaluation on the way: the head as it stands on another cache, a line in metrics.jsonl, the best weights kept.

The training does not notice: modes, random numbers and batches are afterwards as they were.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..contender import Contender, predictor
from ..data.sources import Cached
from ..errors import PipelineError
from ..evaluation import EVALUATED, evaluate_contenders, evaluation_identity, images_to_evaluate
from ..heads.base import MaskHead
from .checkpoint import BEST, Run, check_features, save_tensors
from .track import Track, validations

SEGMENTS = (("panoptic", "PQ"), ("semantic", "mIoU"))
"""The figures that count for heads that tell segments, the first that there is."""
FOLDER = "validation"
"""In the run: the files of the last evaluation on the way."""


class Validation:
    """Of one run on one cache, every `evaluate_every` steps and at the end."""

    def __init__(self, source: Cached, folder: Path, run: Run) -> None:
        """Raises PipelineError where the cache holds other features, or is another than that of the steps before."""
        check_features(run, source.cache.spec, f"cache {source.cache.path}")
        self.source, self.folder, self.config = source, folder, run.recipe.train
        self.indices = images_to_evaluate(source, 0)
        self.identity = evaluation_identity(source, 0, self.indices)
        before = folder / FOLDER / EVALUATED
        known = json.loads(before.read_text())["identity"] if before.exists() else self.identity
        if known != self.identity:
            raise PipelineError(
                f"{folder} was evaluated on another cache so far: {known}, not {self.identity}",
                "continue with the same --val-cache, or give another --run",
            )

    def due(self, step: int) -> bool:
        """Whether this many steps ask for an evaluation that the run has not had."""
        every, last = self.config.evaluate_every, step == self.config.steps
        asked = bool(every) and step > 0 and (step % every == 0 or last)
        return asked and all(row["step"] != step for row in validations(self.folder))

    def evaluate(self, head: MaskHead, step: int, track: Track) -> None:
        """Evaluate the weights after this many steps; after the last, the run gets the files that `evaluate` writes.

        The line of the log comes last: a run that is killed before it evaluates again, and then writes the same.
        """
        last = step == self.config.steps  # the result: its figures are those of the run
        folder = self.folder if last else self.folder / FOLDER
        contender = Contender(folder, predictor(head, self.source), maps_read=head.maps_read)
        with evaluating(head, amp=self.config.amp == "bf16"):
            found = evaluate_contenders(
                self.source, [contender], self.indices, identity=self.identity, errors=last, boundary=last
            )
        metrics = found[contender.folder]
        figures = {**metrics["segm"], "mask_iou": metrics["mask_iou"]}
        figures |= {name: metrics[kind][name] for kind, name in SEGMENTS if kind in metrics}
        others = [_ap(row["val"]) for row in validations(self.folder)]
        best = not others or _ap(figures) > max(others)
        if best:
            save_tensors(self.folder / BEST, head.state_dict())
        track.log({"step": step, "val": figures, "best": best})
        words = ", ".join(f"{name} {figures[name]:.2f}" for name in ("AP", "AP50", "AP75") if figures[name] is not None)
        print(
            f"step {step}: mask {words or 'AP undefined'}{f', the best: {BEST}' if best else ''}",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def evaluating(head: MaskHead, *, amp: bool) -> Iterator[None]:
    """The head predicts inside the block as `load_head` would give it; afterwards every part has its old mode."""
    modes, before = {part: part.training for part in head.modules()}, head.amp
    head.eval()
    head.amp = amp
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        head.amp = before


def _ap(figures: dict[str, Any]) -> float:
    """For comparing: PQ of a panoptic head, mIoU of a semantic one, mask AP of any other; undefined without objects."""
    name = next((name for _, name in SEGMENTS if name in figures), "AP")
    return -1.0 if figures[name] is None else figures[name]
