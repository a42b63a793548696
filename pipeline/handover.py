"""Features go from the detector to the cache: at once where a CPU made them, on a GPU beside the next batch."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from featcache import CacheWriter

from .detectors.base import Features


class Handover:
    """Puts batches into a cache; a context manager, and what was given is put when it ends.

    On a GPU the detector would wait while the processor quantises and fetches image after image. So one batch at a time
    is put by a thread, in a stream of its own, which waits for the batch's detection and not for the next one. On a
    CPU a second thread gains nothing: detector and decoding keep all cores busy.
    """

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(1, "handover")
        self._pending: Future[None] | None = None
        self._stream: torch.cuda.Stream | None = None

    def __enter__(self) -> Handover:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait()
        except Exception:
            if error is None:  # do not hide what went wrong first
                raise
        finally:
            self._pool.shutdown()

    def give(self, view: str, indices: list[int], features: Features) -> None:
        """Put the features of these images; raises what putting this batch, or on a GPU the last one, raised."""
        device = features.boxes.device
        if device.type != "cuda":
            put_batch(self._writer, view, indices, features)
            return
        self._wait()
        self._stream = self._stream or torch.cuda.Stream(device)
        detected = torch.cuda.Event()
        detected.record(torch.cuda.current_stream(device))
        self._pending = self._pool.submit(self._put_beside, self._stream, detected, view, indices, features)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _put_beside(
        self, stream: torch.cuda.Stream, detected: torch.cuda.Event, view: str, indices: list[int], features: Features
    ) -> None:
        with torch.cuda.stream(stream):
            stream.wait_event(detected)
            try:
                put_batch(self._writer, view, indices, features)
            finally:  # their memory goes back to the stream that made them: nothing of this one may still read it
                stream.synchronize()


def put_batch(writer: CacheWriter, view: str, indices: list[int], features: Features) -> None:
    """Put each image of a batch."""
    for row, (index, (height, width)) in enumerate(zip(indices, features.input_hw.tolist(), strict=True)):
        writer.put(
            index,
            view,
            maps={name: tensor[row] for name, tensor in features.maps.items()},
            queries=features.queries[row],
            boxes=features.boxes[row],
            scores=features.scores[row],
            labels=features.labels[row],
            input_hw=(height, width),
        )
