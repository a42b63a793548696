"""How good a mask is, told from its own logits: eq. (2) of Mask Frozen-DETR."""

from torch import Tensor


def mask_quality(mask_logits: Tensor) -> Tensor:
    """Mean probability over the pixels above one half, the factor in eq. (2) beside the class score; 0 if none.

    mask_logits: "n r r" before sigmoid. Returns "n", each 0 or within 0.5-1.
    """
    probs = mask_logits.float().sigmoid().flatten(1)
    inside = (mask_logits.flatten(1) > 0).to(probs.dtype)
    return (probs * inside).sum(1) / inside.sum(1).clamp(min=1)
