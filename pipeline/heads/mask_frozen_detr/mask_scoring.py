"""Mask scoring: the IoU that a predicted mask has with its object, per class (Mask Scoring R-CNN; paper Table 12)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskScoring(nn.Module):
    """Three strided convolutions over mask and features, then three linear layers to one IoU per class."""

    def __init__(self, width: int, roi: int, classes: int) -> None:
        super().__init__()
        side = roi // 8
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, width, 3, stride=2, padding=1) for channels in (width + 1, width, width)
        )
        self.linear1 = nn.Linear(width * side * side, width)
        self.linear2 = nn.Linear(width, width)
        self.iou = nn.Linear(width, classes)

    def forward(self, mask_logits: Tensor, regions: Tensor) -> Tensor:
        """ "m r r", "m c r r" -> IoU "m classes". Neither mask nor features get a gradient from here."""
        cells = torch.cat([mask_logits.detach().sigmoid()[:, None].to(regions.dtype), regions.detach()], dim=1)
        for conv in self.convs:
            cells = F.relu(conv(cells))
        flat = F.relu(self.linear1(cells.flatten(1)))
        return self.iou(F.relu(self.linear2(flat)))
