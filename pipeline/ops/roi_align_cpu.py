"""RoIAlign on the CPU: the reference's two small matrices per box, applied to the cells under the box alone.

Two matrix products per box and level. A coarse level is read through the product of upsampling and sampling, so that
the upsampled sum, which costs torchvision's path more than the sampling, never exists, and the backward pass is made
of the same products. Gives the same bits whatever other boxes and threads there are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .level import image_cells, output_of
from .roi_align_reference import level_weights, without_autocast
from .roi_geometry import Geometry

PICK_BELOW = 0.5
"""Where less of a window carries weight, its rows and columns are picked: samples of enormous boxes lie far apart."""


@dataclass(frozen=True)
class Window:
    """What a box reads of one level of its image."""

    box: int
    image: int
    cells: tuple[slice, slice] | tuple[Tensor, Tensor]
    """Index of the rows and columns in a map "h w c": slices, which give a view, or positions, which give a copy."""
    y: Tensor
    """Weight of each of the rows in each bin. "r h" """
    x: Tensor
    """Weight of each of the columns. "r w" """


@without_autocast
def pool(cells: list[Tensor], scales: list[Tensor], offsets: list[Tensor], boxes: Tensor, geometry: Geometry) -> Tensor:
    """Features of each box on the sum of the levels, channels last. "m r r c"

    cells: per level "b h w c" (`Level.cells`). scales, offsets: per level "b c", empty for float levels.
    boxes: "m 4", xyxy in input pixels, those of image 0 first.
    """
    with one_thread():
        return _pool(cells, scales, offsets, boxes, geometry)


def _pool(
    cells: list[Tensor], scales: list[Tensor], offsets: list[Tensor], boxes: Tensor, geometry: Geometry
) -> Tensor:
    (c, dtype), r = output_of(cells), geometry.size
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    pooled = boxes.new_zeros((geometry.boxes, r, r, c), dtype=exact)
    for level, values in enumerate(cells):
        if not values.shape[3]:
            continue
        for window in windows(boxes.to(exact), geometry, level):
            under = _image(values, geometry, level, window.image)[window.cells].to(exact)
            if values.dtype == torch.uint8:
                under = under * scales[level][window.image] + offsets[level][window.image]
            h, w, _ = under.shape
            columns = (window.y @ under.reshape(h, w * c)).view(r, w, c)
            pooled[window.box] += window.x @ columns
    return pooled.to(dtype)


@without_autocast
def unpool(
    grad: Tensor, boxes: Tensor, geometry: Geometry, shapes: list[tuple[int, ...]], levels: list[int]
) -> list[Tensor]:
    """Gradient of `pool` for those levels, of shape "b h w c" each, from that of its result "m r r c"."""
    with one_thread():
        return _unpool(grad, boxes, geometry, shapes, levels)


def _unpool(
    grad: Tensor, boxes: Tensor, geometry: Geometry, shapes: list[tuple[int, ...]], levels: list[int]
) -> list[Tensor]:
    exact = torch.float64 if grad.dtype == torch.float64 else torch.float32
    grads: list[Tensor] = []
    for level in levels:
        total = grad.new_zeros(shapes[level], dtype=exact)
        for window in windows(boxes.to(exact), geometry, level):
            under = _image(total, geometry, level, window.image)
            columns = window.x.T @ grad[window.box].to(exact)  # "r w c"
            part = (window.y.T @ columns.flatten(1)).view(-1, *columns.shape[1:])
            if isinstance(window.cells[0], slice):
                under[window.cells].add_(part)
            else:
                under[window.cells] += part
        grads.append(total)
    return grads


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, this thread's products run on one core.

    They are small and many: where loader threads or another program want the cores too, several threads for each would
    wait for one another a hundred times longer than they work. torchvision's loops run on one core as well.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def windows(boxes: Tensor, geometry: Geometry, level: int) -> Iterator[Window]:
    """The windows of all boxes "m 4" on a level; none for a box that reads nothing of it."""
    start = 0
    for image, count in enumerate(geometry.counts):
        ys, xs = level_weights(boxes[start : start + count], geometry, level, image)
        rows, columns = (ys != 0).any(1).unbind(0), (xs != 0).any(1).unbind(0)
        for i in range(count):
            used = [some.nonzero()[:, 0] for some in (rows[i], columns[i])]
            if all(len(some) for some in used):
                yield _window(start + i, image, used[0], used[1], ys[i], xs[i])
        start += count


def _window(box: int, image: int, rows: Tensor, columns: Tensor, y: Tensor, x: Tensor) -> Window:
    spans = [slice(int(some[0]), int(some[-1]) + 1) for some in (rows, columns)]
    area = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start)
    if len(rows) * len(columns) < PICK_BELOW * area:
        return Window(box, image, (rows[:, None], columns), y[:, rows], x[:, columns])
    return Window(box, image, (spans[0], spans[1]), y[:, spans[0]], x[:, spans[1]])


def _image(cells: Tensor, geometry: Geometry, level: int, image: int) -> Tensor:
    """One image of "b h w c" without its padding, a view. "h w c" """
    return image_cells(cells[image : image + 1], *geometry.grids[level][image])[0]
