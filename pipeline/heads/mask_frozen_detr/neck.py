"""Neck and channel mapper on the cells under the boxes alone: per image they are one linear map of C1's channels.

Mean and variance of a GroupNorm after a 1x1 convolution follow from the mean and covariance of what goes into it. With
them known, convolution, GroupNorm and mapper are y = A x + t for each image, and RoIAlign, being linear too, may come
before: RoIAlign(A x + t) = A RoIAlign(x) + t RoIAlign(1). No map is made, and none needs a gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featcache import Moments


@dataclass(frozen=True)
class ChannelMap:
    """y = weight x + bias on the channels of each image."""

    weight: Tensor
    """ "b o c" """
    bias: Tensor
    """ "b o" """

    @classmethod
    def first(cls, channels: int, width: int, like: Tensor) -> "ChannelMap":
        """The first `width` of the channels, zeros where there are fewer (`to_width`); one for all images."""
        return cls(torch.eye(width, channels, dtype=like.dtype, device=like.device)[None], like.new_zeros(1, width))

    @classmethod
    def of_neck(cls, convolution: nn.Conv2d, norm: nn.GroupNorm, moments: Moments) -> "ChannelMap":
        """1x1 convolution and GroupNorm (eq. 14) of maps with these moments: mean "b c", covariance "b c c"."""
        assert convolution.bias is not None
        weight = convolution.weight.flatten(1)  # "d c"
        mean = moments.mean.to(weight) @ weight.T + convolution.bias
        variance = (weight @ moments.covariance.to(weight) * weight).sum(2)
        means = mean.unflatten(1, (norm.num_groups, -1))
        centre = means.mean(2, keepdim=True)
        # of all values of a group: the mean of its channels' variances, and the variance of their means
        spread = (variance.view_as(means) + (means - centre).square()).mean(2, keepdim=True)
        scale = (spread + norm.eps).rsqrt().expand_as(means).flatten(1) * norm.weight  # "b d"
        bias = scale * (convolution.bias - centre.expand_as(means).flatten(1)) + norm.bias
        return cls(scale[:, :, None] * weight, bias)

    def then(self, mapper: nn.Linear) -> "ChannelMap":
        """Followed by a linear layer."""
        return ChannelMap(mapper.weight @ self.weight, self.bias @ mapper.weight.T + mapper.bias)

    def on_regions(self, regions: Tensor, coverage: Tensor, counts: list[int]) -> Tensor:
        """Of RoIAligned maps, "m c r r" -> "m o r r", channels-last in memory.

        coverage: RoIAlign of ones (`roi_coverage`), "m 1 r r". counts: boxes of each image.
        """
        weight, bias = _for_each_box(self.weight, counts), _for_each_box(self.bias, counts)
        cells = regions.permute(0, 2, 3, 1).flatten(1, 2)  # "m r*r c"
        constant = coverage.to(bias).flatten(2).transpose(1, 2) * bias[:, None]
        mapped = torch.baddbmm(constant, cells, weight.transpose(1, 2))
        return mapped.unflatten(1, regions.shape[2:]).permute(0, 3, 1, 2)


def _for_each_box(rows: Tensor, counts: list[int]) -> Tensor:
    """Rows of images, or one row for all of them, repeated for each of their boxes. "m ..." """
    rows = rows.expand(len(counts), *rows.shape[1:])
    return torch.cat([row.expand(n, *row.shape) for row, n in zip(rows, counts, strict=True)])


FORWARD_ALONE = 2
"""How much dearer a multiply-add on the boxes is than one on the map where there is no backward pass: measured on a CPU
(`scripts/bench_neck.py`), where the products under a box are small. A backward pass makes up for it: C1 needs none."""


def cheaper_on_boxes(
    *,
    cells: int,
    bins: int,
    channels: int,
    width: int,
    hidden: int,
    samples: int,
    neck: bool,
    moments: bool,
    learning: bool,
) -> bool:
    """Whether C1's way into the regions takes fewer multiply-adds on the bins of the boxes than on the map.

    On the map:      cells * (channels * width where there is a neck + width * hidden where there is a mapper)
                     + bins * hidden * 4 * samples
    On the boxes:    bins * channels * (hidden + 4 * samples), times FORWARD_ALONE unless `learning`,
                     + cells * channels^2 for moments that are not stored

    cells: of C1, all images. bins: of the RoI grids of all boxes, m * r * r. samples: of a bin. width: of the encoder
    maps, that the neck gives; hidden: of the regions, another where there is a mapper. moments: known already.
    learning: gradients will be asked for.
    """
    mapper = hidden != width
    on_map = cells * (channels * width * neck + width * hidden * mapper) + bins * hidden * 4 * samples
    on_boxes = bins * channels * (hidden * (neck or mapper) + 4 * samples) * (1 if learning else FORWARD_ALONE)
    on_boxes += 0 if moments or not neck else cells * channels**2
    return on_boxes < on_map
