"""Queries -> segments that do not overlap: the post-processing of MaskFormer and Mask2Former."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.panoptic import SegmentClass
from ..data.views import View
from .id_map import VOID, IdMap
from .query_masks import QueryMasks, Upsampling


@dataclass(frozen=True)
class Segment:
    """One segment of an image."""

    id: int
    """From 1; in the id map."""
    segment_class: SegmentClass
    score: float
    """Probability of the class; of stuff that several queries tell, of the first of them."""


@dataclass(frozen=True)
class Segmentation:
    """An image cut into segments."""

    ids: IdMap
    """0 where there is no segment."""
    segments: list[Segment]


@torch.inference_mode()
def panoptic(queries: QueryMasks, view: View) -> Segmentation:
    """The segments of an image, in its original size.

    Each pixel goes to the query of greatest class probability times mask probability, if its mask has one half or more
    there. A query is a segment if its class is sure (`object_threshold`) and its mask mostly its own
    (`overlap_threshold`); segments of one stuff class are one. No pass needs memory for more than the masks as bits.
    """
    scores, labels = queries.probs.float().max(-1)
    kept = torch.nonzero((labels < len(queries.classes)) & (scores > queries.object_threshold)).flatten().tolist()
    upsampling = Upsampling.of(queries, view)
    shape = (len(upsampling.rows), len(upsampling.columns))
    best = torch.zeros(shape, device=queries.mask_logits.device)
    owner = torch.full(shape, -1, dtype=torch.int16, device=best.device)
    inside: list[Tensor] = []
    for number, query in enumerate(kept):
        probs = upsampling.logits(queries.mask_logits[query]).sigmoid()
        inside.append(probs >= 0.5)
        value = scores[query] * probs
        better = value > best
        best, owner = torch.where(better, value, best), owner.masked_fill(better, number)
    ids, segments, stuff = torch.zeros(shape, dtype=torch.int64, device=best.device), list[Segment](), dict[int, int]()
    for number, query in enumerate(kept):
        mine = owner == number
        won, whole, painted = (int(mask.sum()) for mask in (mine, inside[number], mine & inside[number]))
        if not (won and whole and painted) or won / whole < queries.overlap_threshold:
            continue
        label, segment_id = int(labels[query]), len(segments) + 1
        if label in stuff:
            segment_id = stuff[label]
        else:
            segments.append(Segment(segment_id, queries.classes[label], float(scores[query])))
            if not queries.classes[label].isthing:
                stuff[label] = segment_id
        ids[mine & inside[number]] = segment_id
    found = np.full(upsampling.image_hw, VOID, dtype=np.int64)
    found[upsampling.region] = ids.cpu().numpy()
    return Segmentation(found, segments)
