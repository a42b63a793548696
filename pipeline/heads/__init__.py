"""Mask heads: cached features, boxes and queries in; mask logits in the frame of each box out."""
