"""Multiply-adds of a head, part by part, as papers count them: counted in one pass over features without values."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from .detectors.base import Features
from .heads.base import MaskHead
from .heads.mask_frozen_detr import MaskFrozenDetr

POOLING, MASKS = "roi_align", "mask_head"
"""Parts for what a head does outside of its modules: RoIAlign with the upsampling before it, and matrix products."""


def macs_by_part(head: MaskHead, features: Features) -> dict[str, int]:
    """Multiply-adds of each direct child of the head by its name, and of what the head does outside of them.

    What a child does while another waits for it is its own. features: of one image; their values are of no matter.
    """
    if isinstance(head, MaskFrozenDetr) and head.config.neck_path == "auto":
        head.config = replace(head.config, neck_path="full")  # as the paper counts it, whatever is cheaper
    formulas = {torch.ops.featcache.roi_align: _roi_align_flops, torch.ops.aten.upsample_bilinear2d: _upsample_flops}
    parts: dict[str, int] = {}
    seen: dict[Any, int] = {}
    running: list[str] = []

    def settle() -> None:
        """What was counted since the last time goes to the part that is running."""
        for op, flops in counter.get_flop_counts().get("Global", {}).items():
            part = running[-1] if running else POOLING if op in formulas else MASKS
            parts[part] = parts.get(part, 0) + flops - seen.get(op, 0)
            seen[op] = flops

    def enter(part: str) -> None:
        settle()
        running.append(part)

    def leave() -> None:
        settle()
        running.pop()

    hooks: list[RemovableHandle] = []
    for name, module in head.named_modules():
        if part := name.partition(".")[0]:
            hooks.append(module.register_forward_pre_hook(lambda *_, part=part: enter(part)))
            hooks.append(module.register_forward_hook(lambda *_: leave()))
    with _plain_attention(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        head(features, [features.boxes[0]], [features.queries[0]])
        settle()
    for hook in hooks:
        hook.remove()
    return {part: flops // 2 for part, flops in parts.items()}


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as its matrix products, not as one operator that hides them."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _roi_align_flops(cells: list[Any], *others: Any, **shapes: Any) -> int:
    """As the paper counts it: ratio x ratio samples of four products each, before that the other maps upsampled.

    What computes them in fewer operations (products of small matrices, a composite stencil) is not counted as such.
    """
    *_, ratio, composite = others
    sampled = math.prod(shapes["out_shape"]) * (4 * (ratio or 2) ** 2 + 1)
    upsampled = 4 * math.prod(cells[0]) * (len(cells) - 1) if composite else 0
    return 2 * (sampled + upsampled)


def _upsample_flops(*_: Any, **shapes: Any) -> int:
    """Each output value is a sum of four products."""
    return 2 * math.prod(shapes["out_shape"]) * 4
