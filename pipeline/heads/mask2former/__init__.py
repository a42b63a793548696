"""Mask2Former's masked-attention decoder on the maps of a frozen detector."""

from .config import Mask2FormerConfig
from .head import Mask2Former

__all__ = ["Mask2Former", "Mask2FormerConfig"]
