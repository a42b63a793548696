"""ResNet-50 with frozen batch normalisation, as the DETR family uses it."""

from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d


class ResNet50(nn.Module):
    """torchvision's ResNet-50 (stride on the 3x3 convolution) without its classifier.

    Names of the weights are torchvision's, which the official checkpoints keep after `backbone.0.body.`.
    """

    channels: tuple[int, int, int, int] = (256, 512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        net = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, images: Tensor) -> list[Tensor]:
        """ "b 3 h w" -> outputs of layer1 (C1) to layer4, each after its last ReLU; odd sizes round up."""
        cells = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps: list[Tensor] = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            cells = layer(cells)
            maps.append(cells)
        return maps
