"""`Contender`: who is evaluated, and how its masks come about: from one view or as means over several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data.sources import Batch, Cached
from .detectors.base import Features
from .errors import PipelineError
from .heads.base import MaskHead, Masks
from .heads.looks import looks, predict_looks

Predict = Callable[[Batch], Masks]
"""A batch of one image -> its masks."""


@dataclass(frozen=True)
class Contender:
    """Who is evaluated, and the run directory that gets the files."""

    folder: Path
    predict: Predict
    head: MaskHead | None = None
    """What `predict` runs, to give its memory back."""
    maps_read: tuple[str, ...] | None = None
    """The maps that `predict` looks at, None for all."""

    @classmethod
    def of_head(cls, folder: Path, head: MaskHead, source: Cached, views: Sequence[str] = ()) -> "Contender":
        """A trained head; for the rest see `predictor`."""
        return cls(folder, predictor(head, source, views), head, head.maps_read)


def predictor(head: MaskHead, source: Cached, views: Sequence[str] = ()) -> Predict:
    """The masks of a head, `finite`: means over these views too, where there are any (`heads/looks.py`)."""

    def predict(batch: Batch) -> Masks:
        if not views:
            return finite(head.predict(batch.features, batch.counts)[0], batch)
        info = batch.infos[0]
        index = source.cache.index_of(info.id)

        def see(view: str) -> Features:
            return source.batch([(index, view)], head.maps_read).features

        seen = looks(batch.features, info, views, see, first=batch.views[0])
        return finite(predict_looks(head, seen), batch)

    return predict


def finite(masks: Masks, batch: Batch) -> Masks:
    """The masks as they are; raises PipelineError with the image id where they are not numbers, as after a training
    that ran away in its last step."""
    if not masks.scores.isfinite().all() or masks.mask_logits.isnan().any():
        raise PipelineError(
            f"the masks of image {batch.infos[0].id} are not numbers: the head's weights or its input are not",
            "train again with a lower lr; `evaluate --best` where the training was evaluated on the way",
        )
    return masks
