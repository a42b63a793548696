"""In which order images come: trainings that share it can be fed by one pass over the features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featcache import Wanted

from ..data.sources import FeatureSource, Stream
from ..errors import PipelineError
from .config import TrainConfig


@dataclass(frozen=True)
class Order:
    """Decides every batch of a training: two with equal orders see the same images at the same step."""

    seed: int
    batch_size: int
    views: tuple[str, ...]
    holdout: int

    @classmethod
    def of(cls, config: TrainConfig, source: FeatureSource) -> "Order":
        """The order that a training asks for."""
        seed = config.seed if config.order_seed < 0 else config.order_seed
        return cls(seed, config.batch_size, tuple(config.views or source.spec.views), config.holdout)

    def indices(self, source: FeatureSource) -> list[int]:
        """Positions of the images to learn from: extracted in every view asked for, and not held out."""
        finished = source.finished(self.views)
        kept = [index for index in finished if not self.holdout or index % self.holdout]
        if not kept:
            raise PipelineError(
                f"holdout={self.holdout} leaves no image of {source} to learn from",
                "give a larger holdout, or 0 for none",
            )
        return kept

    def stream(
        self, source: FeatureSource, levels: Sequence[str] | None = None, wanted: Wanted | None = None
    ) -> Stream:
        """The batches, without end, from the first; `levels` and `wanted` as of `FeatureSource.stream`."""
        order: dict[str, Any] = {"views": self.views, "indices": self.indices(source), "seed": self.seed}
        return source.stream(self.batch_size, **order, levels=levels, wanted=wanted)

    def __str__(self) -> str:
        held = f", holdout {self.holdout}" if self.holdout else ""
        return f"batches of {self.batch_size}, views {' '.join(self.views)}{held}, order of seed {self.seed}"
