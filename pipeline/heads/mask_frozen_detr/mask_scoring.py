"""Mask scoring: the IoU that a predicted mask has with its object, per class (Mask Scoring R-CNN; paper Table 12)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import HeadConfig


class MaskScoring(nn.Module):
    """Three strided convolutions over mask and features, then three linear layers to one IoU per class."""

    def __init__(self, config: HeadConfig, classes: int) -> None:
        super().__init__()
        self.of_probs = config.mask_scoring_input == "probs"
        self.teaches = config.mask_scoring_gradient
        width, side = config.hidden, config.roi // 8
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, width, 3, stride=2, padding=1) for channels in (width + 1, width, width)
        )
        self.linear1 = nn.Linear(width * side * side, width)
        self.linear2 = nn.Linear(width, width)
        self.iou = nn.Linear(width, classes)

    def forward(self, mask_logits: Tensor, regions: Tensor) -> Tensor:
        """ "m r r", "m c r r" -> IoU "m classes". Mask and features get a gradient from here only if so configured."""
        if not self.teaches:
            mask_logits, regions = mask_logits.detach(), regions.detach()
        mask = mask_logits.sigmoid() if self.of_probs else mask_logits
        cells = torch.cat([mask[:, None].to(regions.dtype), regions], dim=1)
        for conv in self.convs:
            cells = F.relu(conv(cells))
        flat = F.relu(self.linear1(cells.flatten(1)))
        return self.iou(F.relu(self.linear2(flat)))
