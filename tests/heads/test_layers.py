"""Swin and ConvNeXt layers against torchvision's, same weights."""

import pytest
import torch
from torchvision.models.convnext import CNBlock
from torchvision.models.swin_transformer import SwinTransformerBlock

from pipeline.heads.convnext import ConvNextLayer
from pipeline.heads.swin import SwinLayer

SWIN_NAMES = {"block.mlp.fc1": "mlp.0", "block.mlp.fc2": "mlp.3", "block.": ""}


def randomise(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


@torch.no_grad()
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("window", "size"), [(8, (16, 32)), (8, (13, 21)), (14, (28, 28)), (14, (17, 30)), (16, (50, 33)), (16, (32, 17))]
)
def test_swin_layer_is_torchvisions(window: int, size: tuple[int, int], shifted: bool) -> None:
    """On maps of several windows; along an axis of one, torchvision drops the shift and the official code does not."""
    torch.manual_seed(0)
    ours = SwinLayer(32, 8, window, shifted=shifted)
    randomise(ours)
    theirs = SwinTransformerBlock(32, 8, [window] * 2, [window // 2 if shifted else 0] * 2)
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        for old, new in SWIN_NAMES.items():
            name = name.replace(old, new)
        state[name] = value
    theirs.load_state_dict(state)
    maps = torch.randn(2, 32, *size)
    expected = theirs.eval()(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(ours(maps), expected, atol=2e-5)


def test_the_constant_of_a_swin_layer_is_not_saved() -> None:
    layer = SwinLayer(16, 8, 8, shifted=True)
    assert len(layer.state_dict()) == len(list(layer.parameters()))


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (7, 19), (3, 2)])
def test_convnext_layer_is_torchvisions(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = ConvNextLayer(32, layer_scale=1e-6)
    assert ours.scale.unique().tolist() == pytest.approx([1e-6])
    randomise(ours)
    theirs = CNBlock(32, layer_scale=1.0, stochastic_depth_prob=0.0)
    values = list(ours.state_dict().values())
    scale = next(value for name, value in ours.state_dict().items() if name == "scale")
    rest = [value for name, value in ours.state_dict().items() if name != "scale"]
    assert len(values) == len(theirs.state_dict())
    names = [name for name in theirs.state_dict() if name != "layer_scale"]
    theirs.load_state_dict({"layer_scale": scale[:, None, None], **dict(zip(names, rest, strict=True))})
    maps = torch.randn(2, 32, *size)
    assert torch.allclose(ours(maps), theirs(maps), atol=1e-5)
