"""From what the queries of an image say to its instances: masks with class, score and box."""

import torch
from torch import Tensor

from ..data.transforms import xyxy_to_cxcywh
from .base import Masks


def instances(
    probs: Tensor, mask_logits: Tensor, view_hw_cells: tuple[float, float], most: int, boxes: Tensor | None = None
) -> Masks:
    """The `most` best pairs of query and class, best first, with the class probability as score.

    The official post-processing multiplies it by the quality of the mask in the image: `Masks.judge_pasted`.
    probs: of each class, "q classes". mask_logits: "q h w". view_hw_cells: height and width of the view in cells; the
    grid's last may reach beyond it. boxes: cxcywh in 0-1 of the view, "q 4"; None: those of the masks.
    """
    classes = probs.shape[1]
    scores, pairs = probs.flatten().topk(min(most, probs.numel()))
    mask_logits = mask_logits.float()
    kept = pairs // classes
    h, w = view_hw_cells
    size = mask_logits.new_tensor([w, h, w, h])
    grid = mask_logits.new_tensor([0.0, 0.0, mask_logits.shape[2], mask_logits.shape[1]])
    if boxes is None:
        boxes = xyxy_to_cxcywh((mask_boxes(mask_logits) / size).clamp(0, 1))
    return Masks(
        mask_logits=mask_logits[kept],
        boxes=boxes[kept],
        scores=scores,
        labels=pairs % classes,
        frames=xyxy_to_cxcywh(grid / size).expand(len(kept), 4),
        own_boxes=True,
        judge_pasted=True,
    )


def mask_boxes(mask_logits: Tensor) -> Tensor:
    """The tightest box around each mask, xyxy in cells of its grid; zeros for an empty one. "n h w" -> "n 4"

    Its edges are where the logits, linear between the centres of two cells, cross 0: as the pasted mask will have them.
    """
    empty = ~(mask_logits > 0).flatten(1).any(1)
    x0, y0 = _first_edge(mask_logits), _first_edge(mask_logits.transpose(1, 2))
    x1 = mask_logits.shape[2] - _first_edge(mask_logits.flip(2))
    y1 = mask_logits.shape[1] - _first_edge(mask_logits.transpose(1, 2).flip(2))
    return torch.stack([x0, y0, x1, y1], dim=1).masked_fill(empty[:, None], 0)


def _first_edge(mask_logits: Tensor) -> Tensor:
    """Where each mask begins along the last axis, in cells. "n h w" -> "n" """
    column = (mask_logits > 0).any(1).float().argmax(1)  # the first that the mask touches
    rows = torch.arange(len(mask_logits), device=mask_logits.device)
    inside = mask_logits[rows, :, column]  # "n h"
    before = mask_logits[rows, :, (column - 1).clamp(min=0)]
    back = torch.where(inside > 0, inside / (inside - before).clamp(min=1e-9), 0.0).amax(1)  # from this cell's centre
    return torch.where(column == 0, 0.0, column + 0.5 - back)
