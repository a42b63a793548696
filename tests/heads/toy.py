"""Random features of any size, for tests of heads and of their training."""

import math

import torch

from pipeline.detectors.base import Features
from pipeline.heads.base import Widths


def random_features(widths: Widths, sizes: list[tuple[int, int]], detections: int = 5, seed: int = 0) -> Features:
    """A batch of images of these network input sizes; maps and detections random, padding zero."""
    generator = torch.Generator().manual_seed(seed)
    b = len(sizes)
    maps: dict[str, torch.Tensor] = {}
    for name, channels in widths.channels.items():
        grids = [tuple(math.ceil(side / widths.strides[name]) for side in size) for size in sizes]
        maps[name] = torch.zeros(b, channels, max(h for h, _ in grids), max(w for _, w in grids))
        for row, (h, w) in enumerate(grids):
            maps[name][row, :, :h, :w] = torch.randn(channels, h, w, generator=generator)
    centres = 0.3 + 0.4 * torch.rand(b, detections, 2, generator=generator)
    box_sizes = 0.1 + 0.4 * torch.rand(b, detections, 2, generator=generator)
    return Features(
        maps=maps,
        encoder=widths.encoder,
        strides=widths.strides,
        queries=torch.randn(b, detections, widths.query_dim, generator=generator),
        boxes=torch.cat([centres, box_sizes], dim=-1),
        scores=torch.rand(b, detections, generator=generator).sort(dim=1, descending=True).values,
        labels=torch.randint(0, widths.classes, (b, detections), generator=generator),
        input_hw=torch.tensor(sizes),
    )


def widths(encoder: dict[int, int], c1: int, query_dim: int, classes: int = 80) -> Widths:
    """Widths of a detector with encoder maps {stride: channels} and c1 channels at stride 4."""
    names = {f"e{stride}": channels for stride, channels in encoder.items()}
    return Widths(
        channels={"c1": c1, **names},
        strides={"c1": 4, **{f"e{stride}": stride for stride in encoder}},
        encoder=tuple(names),
        query_dim=query_dim,
        classes=classes,
    )


HDETR = widths({8: 256, 16: 256, 32: 256, 64: 256}, c1=256, query_dim=256)
SMALL = widths({16: 24, 32: 24}, c1=16, query_dim=24, classes=7)
FINE = widths({4: 24, 8: 24}, c1=16, query_dim=40, classes=7)
"""Like a 5-scale detector: the finest encoder map has C1's stride."""
EQUAL = widths({8: 16, 16: 16}, c1=16, query_dim=16, classes=7)
"""Like H-DETR R50: C1, encoder maps and queries have one width."""
