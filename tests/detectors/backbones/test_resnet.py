"""ResNet-50 against torchvision's own network with the same weights."""

from pathlib import Path

import pytest
import torch
from backbone_keys import assert_equal_maps, official_shapes, shapes_of
from torch import Tensor
from torchvision.models import resnet50

from pipeline.detectors.backbones.resnet import ResNet50


@pytest.fixture(scope="module")
def networks() -> tuple[ResNet50, torch.nn.Module]:
    """Ours and torchvision's in eval mode, with the same weights and batch statistics far from 0 and 1."""
    torch.manual_seed(0)
    reference = resnet50(weights=None).eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    weights = {name: value for name, value in reference.state_dict().items() if not name.startswith("fc.")}
    model = ResNet50().eval()
    model.load_state_dict({name: value for name, value in weights.items() if "num_batches_tracked" not in name})
    return model, reference


@pytest.mark.parametrize("size", [(96, 128), (65, 99)])
def test_maps_equal_torchvision(networks: tuple[ResNet50, torch.nn.Module], size: tuple[int, int]) -> None:
    model, reference = networks
    expected: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        expected.append(output)

    hooks = [reference.get_submodule(f"layer{stage}").register_forward_hook(keep) for stage in (1, 2, 3, 4)]
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        reference(images)
        maps = model(images)
    for hook in hooks:
        hook.remove()
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(model.channels, (4, 8, 16, 32), strict=True)
    ]
    assert_equal_maps(maps, expected)


def test_training_mode_changes_nothing(networks: tuple[ResNet50, torch.nn.Module]) -> None:
    model, _ = networks
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        quiet = model(images)
        noisy = model.train()(images)
    model.eval()
    assert all(torch.equal(a, b) for a, b in zip(quiet, noisy, strict=True))


@pytest.mark.parametrize(
    ("checkpoint", "prefix"), [("hdetr_r50", "backbone.0.body."), ("dino_r50_4scale", "backbone.0.body.")]
)
def test_keys_are_the_official_ones(shared: Path, checkpoint: str, prefix: str) -> None:
    with torch.device("meta"):
        model = ResNet50()
    assert shapes_of(model) == official_shapes(shared, checkpoint, prefix)
