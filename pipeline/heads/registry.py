"""Heads by family: a new family is one file (or folder) and one line here."""

from typing import Any

from ..errors import UsageError, suggestion
from .base import MaskHead, Widths
from .baseline import Baseline, BaselineConfig
from .mask2former import Mask2Former, Mask2FormerConfig
from .mask_dino import MaskDino, MaskDinoConfig
from .mask_frozen_detr import HeadConfig, MaskFrozenDetr

FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "mask-frozen-detr": (HeadConfig, MaskFrozenDetr),
    "baseline": (BaselineConfig, Baseline),
    "mask-dino": (MaskDinoConfig, MaskDino),
    "mask2former": (Mask2FormerConfig, Mask2Former),
}
"""Family -> (config dataclass, head built from config and widths)."""


def config_class(family: str, where: str) -> type[Any]:
    """The config dataclass of a family; `where` (a file) opens the error about an unknown one."""
    if family not in FAMILIES:
        raise UsageError(f"{where}: unknown family '{family}'", suggestion(family, FAMILIES))
    return FAMILIES[family][0]


def build_head(family: str, config: Any, widths: Widths) -> MaskHead:
    """The untrained head at the widths of a detector."""
    return FAMILIES[family][1](config, widths)
