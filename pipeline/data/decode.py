"""Images decoded, resized and normalised in threads, a few batches ahead of the detector."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from .coco import CocoSet, read_image
from .images import UnreadableImageError
from .transforms import Transform

AHEAD = 2
"""Batches that are being read while one is used."""


@dataclass(frozen=True)
class DecodedBatch:
    """Network inputs of one size, and the images of the batch that could not be read."""

    indices: list[int]
    images: Tensor
    """ "b 3 h w", one for each index; b is 0 if none could be read."""
    errors: dict[int, UnreadableImageError]


def plan_batches(coco: CocoSet, indices: Sequence[int], transform: Transform, size: int) -> list[list[int]]:
    """`indices` in batches of up to `size` images with one network size, near their given order.

    Sizes are grouped within windows of 16 batches only, so that neighbours in a cache are still written close in time.
    """
    batches: list[list[int]] = []
    for start in range(0, len(indices), 16 * size):
        groups: dict[tuple[int, int], list[int]] = {}
        for index in indices[start : start + 16 * size]:
            info = coco.images[index]
            groups.setdefault(transform.network_hw((info.height, info.width)), []).append(index)
        batches += [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
    return batches


def decode_ahead(
    coco: CocoSet, batches: Sequence[list[int]], transform: Transform, view: str, *, threads: int = 2
) -> Iterator[DecodedBatch]:
    """The batches in order; while one is used, `AHEAD` more are being read by `threads`."""

    def load(index: int) -> Tensor | UnreadableImageError:
        try:
            return transform(read_image(coco, index), coco.view(index, view))
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(threads, "decode") as pool:
        waiting = iter(batches)
        queue: deque[tuple[list[int], list[Future[Tensor | UnreadableImageError]]]] = deque()

        def submit(count: int) -> None:
            queue.extend((batch, [pool.submit(load, index) for index in batch]) for batch in islice(waiting, count))

        submit(AHEAD + 1)
        try:
            while queue:
                batch, futures = queue.popleft()
                yield _collect(batch, [future.result() for future in futures])
                submit(1)
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(batch: list[int], loaded: list[Tensor | UnreadableImageError]) -> DecodedBatch:
    good = {index: image for index, image in zip(batch, loaded, strict=True) if isinstance(image, Tensor)}
    errors = {
        index: error for index, error in zip(batch, loaded, strict=True) if isinstance(error, UnreadableImageError)
    }
    images = torch.stack(list(good.values())) if good else torch.empty(0)
    return DecodedBatch(list(good), images, errors)
