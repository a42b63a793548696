"""One pass over the features for any number of heads: each batch is made once, every head steps on it."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

from featcache.progress import Progress

from ..data.sources import Batch, Cached, FeatureSource, Stream, maps_asked_for
from ..errors import PipelineError
from ..interrupt import noted_interrupt
from .order import Order
from .rows import rows_under_boxes
from .track import TERMS
from .trainer import Trainer

Drop = Callable[[Trainer, Exception], None]
"""Told of a head whose step failed; the others go on."""


def train_together(source: FeatureSource, trainers: Iterable[Trainer], drop: Drop | None = None) -> None:
    """All steps that are left to these heads; each head's result is written when its last step is done.

    The heads must share an `Order`. They need not stand at the same step: the pass begins where the least advanced one
    stands, and a head takes part from its own step on. So it is of no matter when the last run was killed, which heads
    finish first or are added later, and every head sees the batches that it would see alone.

    drop: without it, the error of a head ends the pass. With it, the head is dropped and `drop` is told.
    """
    live: list[Trainer] = []
    for trainer in trainers:
        trainer.validate_if_due()  # of one killed in an evaluation
        if trainer.finished:  # killed between its last checkpoint and its result
            trainer.write_head()
        else:
            live.append(trainer)
    if not live:
        return
    (order,) = {Order.of(trainer.config, source) for trainer in live}
    stream = _stream(order, source, live)
    for place in (trainer.place for trainer in live if trainer.place is not None):
        stream.load_state_dict(place)  # refuses a cache that has other images by now; then `seek` says where
    first, last = min(trainer.steps_done for trainer in live), max(trainer.config.steps for trainer in live)
    with noted_interrupt() as stop, Progress(last, "steps", done=first) as progress:
        while live:
            at = min(trainer.steps_done for trainer in live)
            progress.update(at - progress.done)  # over steps that every head has taken already
            stream.seek(at)
            with closing(iter(stream)) as batches:
                while taking := [trainer for trainer in live if trainer.steps_done == at]:
                    asked = time.monotonic()
                    batch = next(batches)
                    waited = time.monotonic() - asked - stream.computing
                    stepped = _step(taking, batch, waited, drop)
                    stopping = stop.is_set()
                    for trainer in stepped:
                        trainer.save_if_due(stream.state_dict(), stopping=stopping)
                        if not stopping or trainer.finished:
                            trainer.validate_if_due()
                        if trainer.finished:
                            trainer.write_head()
                            trainer.release()
                    dropped = [trainer for trainer in taking if trainer not in stepped]
                    live = [trainer for trainer in live if trainer not in dropped and not trainer.finished]
                    at += 1
                    progress.update(1, _facts(stepped))
                    if stopping and live:
                        raise PipelineError(*_stopped(live, at, last))


def _stream(order: Order, source: FeatureSource, trainers: Sequence[Trainer]) -> Stream:
    """The batches with what any of these heads looks at, and no more of a cache read than that."""
    maps = maps_asked_for((one.model.maps_read for one in trainers), source.spec)
    if isinstance(source, Cached) and len(maps) < len(source.spec.levels):
        print(f"reading {', '.join(maps)} of {len(source.spec.levels)} maps", file=sys.stderr, flush=True)
    return order.stream(source, maps, rows_under_boxes([(one.model, one.config) for one in trainers], source))


def _step(trainers: list[Trainer], batch: Batch, waited: float, drop: Drop | None) -> list[Trainer]:
    """Every head's step on one batch; returns those that took it."""
    stepped: list[Trainer] = []
    for trainer in trainers:
        try:
            trainer.step(batch, waited)
            stepped.append(trainer)
            continue
        except Exception as error:
            if drop is None:
                raise
            drop(trainer, error)
        trainer.release()  # not before the error is gone, which holds the tensors of the step
    return stepped


def _stopped(live: list[Trainer], at: int, last: int) -> tuple[str, str]:
    saved = live[0].folder if len(live) == 1 else live[0].folder.parent
    return f"stopped by Ctrl-C after step {at} of {last}, saved in {saved}", "run the same command again to go on"


def _facts(stepped: list[Trainer]) -> str:
    """The line of a step, after those that were logged."""
    numbers = [trainer.latest for trainer in stepped if trainer.latest]
    if not numbers or numbers[0]["step"] != stepped[0].steps_done:
        return ""
    first = numbers[0]
    speed = f"{first['images_per_second']:.1f} images/s, waiting {first['data_wait']:.0%}"
    memory = f"memory {max(one['memory_bytes'] for one in numbers) / 1e9:.1f} GB"
    if len(stepped) > 1:
        losses = [one["loss"] for one in numbers if "loss" in one]
        span = f", loss {min(losses):.3f} to {max(losses):.3f}" if losses else ""
        return f"{len(stepped)} heads{span}, {speed}, {memory}"
    terms = [f"{key} {first[key]:.3f}" for key in TERMS if key in first]
    return ", ".join([*terms, f"lr {first['lr']:.1e}", speed, memory])
