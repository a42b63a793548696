"""Mask DINO and DI-MaskDINO on the maps of a frozen detector: queries with boxes and masks of their own."""

from .config import MaskDinoConfig
from .head import MaskDino

__all__ = ["MaskDino", "MaskDinoConfig"]
