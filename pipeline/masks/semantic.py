"""Queries -> a class for each pixel: the post-processing of MaskFormer and Mask2Former."""

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.views import View
from .query_masks import QueryMasks, Upsampling

UNSEEN = -1
"""Label of the pixels that a view does not show."""
MOST_VALUES = 1 << 23
"""Mask values in memory at a time."""


@torch.inference_mode()
def semantic(queries: QueryMasks, view: View) -> NDArray[np.int16]:
    """The label of each pixel of the original image, "h w": of the class with the greatest sum, over the queries, of
    class probability (without "no object") times mask probability."""
    upsampling = Upsampling.of(queries, view)
    probs = queries.probs[:, :-1].float().T  # "classes q"
    count, width = len(queries.mask_logits), len(upsampling.columns)
    labels = np.zeros((len(upsampling.rows), width), dtype=np.int16)
    for where, rows in upsampling.bands(max(1, MOST_VALUES // max(1, max(count, len(probs)) * width))):
        masks = upsampling.logits(queries.mask_logits, rows).sigmoid()
        labels[where] = torch.einsum("cq,qyx->cyx", probs, masks).argmax(0).short().cpu().numpy()
    found = np.full(upsampling.image_hw, UNSEEN, dtype=np.int16)
    found[upsampling.region] = labels
    return found
