"""RoIAlign over one or several feature maps: maps and boxes in, one r x r grid of features per box out.

The semantics are those of `torchvision.ops.roi_align` with `aligned=True`. Boxes stay float32 whatever the maps are:
half-precision boxes cost more accuracy than 8-bit features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

SAMPLING_RATIO = 2


def roi_align(
    levels: Sequence[tuple[Tensor, int]],
    boxes: Sequence[Tensor],
    size: int,
    *,
    sampling_ratio: int = SAMPLING_RATIO,
) -> Tensor:
    """Features of every box on the sum of the maps, `C1 + interpolate(E)` of the paper's eq. (1) and (3).

    levels: (map "b c h w", stride) pairs, all of c channels. Coarser maps are upsampled bilinearly
        (`align_corners=False`) to the grid of the first, which is the finest.
    boxes: per image "n 4", xyxy in input pixels, float32; an image without boxes has n = 0.
    size: r, cells along each side of the grid.
    sampling_ratio: samples per cell and axis; 0 chooses ceil(box side / r) as torchvision does.
    Returns "m c r r" in the dtype of the first map, boxes of image 0 first, m the number of all boxes.
    """
    finest, stride = levels[0]
    total = finest
    for coarse, _ in levels[1:]:
        total = total + F.interpolate(coarse, size=finest.shape[-2:], mode="bilinear", align_corners=False)
    rois = torch.cat([F.pad(box.float(), (1, 0), value=float(image)) for image, box in enumerate(boxes)])
    # torchvision has no bfloat16 kernel, and in half precision it would round the boxes too.
    with torch.autocast(finest.device.type, enabled=False):
        pooled = torchvision.ops.roi_align(total.float(), rois, size, 1.0 / stride, sampling_ratio, aligned=True)
    return pooled.to(finest.dtype)
