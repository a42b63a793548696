"""Mask DINO and DI-MaskDINO on the maps of a frozen detector: queries with boxes and masks of their own."""
