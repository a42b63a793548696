"""FocalNet against the FocalNetBackbone of transformers with the same weights, at even and odd sizes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from backbone_keys import CLOSE, assert_equal_maps, official_shapes, perturb, shapes_of
from torch import Tensor

from pipeline.detectors.backbones.focalnet import FOCALNET_L_FL3, FOCALNET_L_FL4, FocalNet, FocalNetConfig

FL4 = replace(FOCALNET_L_FL4, embed_dim=16, depths=(2, 1, 3, 1))
FL3 = replace(FOCALNET_L_FL3, embed_dim=16, depths=(2, 1, 3, 1))


def tiny(config: FocalNetConfig) -> FocalNet:
    torch.manual_seed(0)
    return perturb(FocalNet(config)).eval()


def maps_of_transformers(model: FocalNet, config: FocalNetConfig, images: Tensor) -> list[Tensor]:
    """Stage outputs before their downsampling, from hooks; the norms of the maps are ours, as theirs have none."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.FocalNetBackbone(
        transformers.FocalNetConfig(
            embed_dim=config.embed_dim,
            depths=list(config.depths),
            hidden_sizes=list(model.channels),
            focal_levels=[config.levels] * 4,
            focal_windows=[config.window] * 4,
            use_conv_embed=True,
            use_post_layernorm=True,
            use_layerscale=True,
            normalize_modulator=config.normalize_modulator,
            out_features=["stage1"],
        )
    )
    reference.to(images.dtype).eval()
    weights = model.state_dict()
    norms = {name: weights.pop(name) for name in list(weights) if re.match(r"norm\d", name)}
    report = reference.load_state_dict({their_name(name): value for name, value in weights.items()}, strict=False)
    assert not report.unexpected_keys
    assert all(name.startswith("focalnet.layernorm.") for name in report.missing_keys)
    before: list[tuple[Tensor, tuple[int, int]]] = []
    for stage in reference.get_submodule("focalnet.encoder.stages").children():
        stage.register_forward_hook(lambda _m, inputs, output: before.append((output[1], inputs[1])))
    with torch.no_grad():
        reference(images)
    maps: list[Tensor] = []
    for i, (tokens, size) in enumerate(before):
        normed = F.layer_norm(tokens, tokens.shape[-1:], norms[f"norm{i}.weight"], norms[f"norm{i}.bias"])
        maps.append(normed.transpose(1, 2).unflatten(2, size))
    return maps


def their_name(name: str) -> str:
    for ours, theirs in (
        (r"^patch_embed\.proj", "focalnet.embeddings.patch_embeddings.projection"),
        (r"^patch_embed\.norm", "focalnet.embeddings.norm"),
        (r"^layers\.(\d)\.blocks", r"focalnet.encoder.stages.\1.layers"),
        (r"^layers\.(\d)\.downsample\.proj", r"focalnet.encoder.stages.\1.downsample.projection"),
        (r"^layers\.(\d)\.downsample\.norm", r"focalnet.encoder.stages.\1.downsample.norm"),
        (r"modulation\.f\.", "modulation.projection_in."),
        (r"modulation\.h\.", "modulation.projection_context."),
        (r"modulation\.proj\.", "modulation.projection_out."),
    ):
        name = re.sub(ours, theirs, name)
    return name


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("size", [(128, 160), (130, 163), (17, 30)])
@pytest.mark.parametrize("config", [FL4, FL3], ids=["fl4", "fl3"])
def test_maps_equal_transformers(config: FocalNetConfig, size: tuple[int, int], dtype: torch.dtype) -> None:
    model = tiny(config).to(dtype)
    images = torch.randn(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        assert_equal_maps(model(images), maps_of_transformers(model, config, images))


def test_the_normalised_modulator_matters() -> None:
    right, wrong = tiny(FL4), tiny(replace(FL4, normalize_modulator=False))
    wrong.load_state_dict(right.state_dict())  # nothing tells them apart
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        differences = [float((a - b).abs().max()) for a, b in zip(right(images), wrong(images), strict=True)]
    assert min(differences) > 0.1


@pytest.mark.parametrize(
    ("size", "cells"),
    [((130, 163), [(33, 41), (17, 21), (9, 11), (5, 6)]), ((17, 30), [(5, 8), (3, 4), (2, 2), (1, 1)])],
)
def test_sizes_round_up(size: tuple[int, int], cells: list[tuple[int, int]]) -> None:
    model = tiny(FL4)
    maps = model(torch.randn(1, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(1, c, *hw) for c, hw in zip(model.channels, cells, strict=True)]


def test_every_weight_gets_a_gradient() -> None:
    model = tiny(FL4)
    torch.stack([m.square().sum() for m in model(torch.randn(1, 3, 64, 64))]).sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_half_precision_is_near() -> None:
    model = tiny(FL4)
    images = torch.randn(1, 3, 90, 70)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(images)
        twice = model.double()(images.double())
    for reference, near, double in zip(exact, mixed, twice, strict=True):
        assert float((near - reference).norm() / reference.norm()) < 0.05
        assert double.dtype == torch.float64
        torch.testing.assert_close(reference.double(), double, rtol=0, atol=1e-5)


def test_keys_are_the_official_ones(shared: Path) -> None:
    with torch.device("meta"):
        model = FocalNet(FOCALNET_L_FL4)
    shapes = shapes_of(model)
    assert shapes == official_shapes(shared, "dino_focalnet_l_fl4_5scale", "backbone.0.")
    assert len(shapes) == 504


def test_parameters_of_focalnet_l() -> None:
    with torch.device("meta"):
        model = FocalNet(FOCALNET_L_FL4)
    assert sum(value.numel() for value in model.parameters()) == 205_746_936
