"""The Mask Frozen-DETR head: one file per arrow of the paper's figure 7."""

from .config import HeadConfig
from .head import MaskFrozenDetr

__all__ = ["HeadConfig", "MaskFrozenDetr"]
