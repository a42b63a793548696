"""Swin against the SwinBackbone of transformers with the same weights, at sizes on and off multiples of the window."""

import re
from pathlib import Path

import pytest
import torch
from backbone_keys import CLOSE, assert_equal_maps, official_shapes, perturb, shapes_of
from torch import Tensor

from pipeline.detectors.backbones.swin import SWIN_L_WINDOW7, SWIN_L_WINDOW12, Swin, SwinConfig, relative_positions

SIZES = [(224, 224), (256, 320), (130, 163), (17, 30)]
"""Multiples of everything; off multiples of the window; odd everywhere; every map smaller than the window."""


def tiny(window: int, norm_c1: bool = True) -> Swin:
    torch.manual_seed(window)
    model = Swin(SwinConfig(embed_dim=16, depths=(2, 2, 3, 2), heads=(1, 2, 2, 4), window=window, norm_c1=norm_c1))
    return perturb(model).eval()


def reference_of(model: Swin, window: int) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        embed_dim=16,
        depths=[2, 2, 3, 2],
        num_heads=[1, 2, 2, 4],
        window_size=window,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    reference = transformers.SwinBackbone(config).eval()
    report = reference.load_state_dict(in_their_names(model.state_dict()), strict=False)
    assert not report.unexpected_keys
    assert all(name.startswith("swin.layernorm.") for name in report.missing_keys)
    return reference


def in_their_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith("relative_position_index"):
            continue
        if ".attn.qkv." in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                renamed[their_name(name.replace("attn.qkv", f"attention.{part}_proj"))] = third
        else:
            renamed[their_name(name)] = value
    return renamed


def their_name(name: str) -> str:
    name = re.sub(r"^norm(\d)", lambda m: f"hidden_states_norms.stage{int(m[1]) + 1}", name)
    for ours, theirs in (
        ("patch_embed.proj", "swin.embeddings.patch_embeddings.projection"),
        ("patch_embed.norm", "swin.embeddings.norm"),
        ("attn.proj", "attention.o_proj"),
        ("attn.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
    ):
        name = name.replace(ours, theirs)
    if ".blocks." in name:
        name = name.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
    return re.sub(r"^layers", "swin.encoder.layers", name)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [7, 12])
def test_maps_equal_transformers(window: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    model = tiny(window)
    images = torch.randn(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        expected = reference_of(model, window).to(dtype)(images).feature_maps
        assert_equal_maps(model.to(dtype)(images), expected)


@pytest.mark.parametrize(
    ("size", "cells"),
    [((130, 163), [(33, 41), (17, 21), (9, 11), (5, 6)]), ((17, 30), [(5, 8), (3, 4), (2, 2), (1, 1)])],
)
def test_sizes_round_up(size: tuple[int, int], cells: list[tuple[int, int]]) -> None:
    model = tiny(7)
    maps = model(torch.randn(1, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(1, c, *hw) for c, hw in zip(model.channels, cells, strict=True)]


def test_c1_has_a_norm_only_where_configured() -> None:
    with_norm, without = tiny(7, norm_c1=True), tiny(7, norm_c1=False)
    weights = with_norm.state_dict()
    norm = {name.removeprefix("norm0."): weights.pop(name) for name in ("norm0.weight", "norm0.bias")}
    without.load_state_dict(weights)
    images = torch.randn(1, 3, 60, 84)
    (c1, *rest), (raw, *rest_of_raw) = with_norm(images), without(images)
    normed = torch.nn.functional.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], **norm)
    torch.testing.assert_close(c1, normed.permute(0, 3, 1, 2))
    assert not torch.allclose(c1, raw)
    assert all(torch.equal(a, b) for a, b in zip(rest, rest_of_raw, strict=True))


def test_images_of_a_batch_do_not_mix() -> None:
    model = tiny(7)
    images = torch.randn(3, 3, 90, 70)
    with torch.no_grad():
        batch = model(images)
        alone = [model(image[None]) for image in images]
    for level, maps in enumerate(batch):
        torch.testing.assert_close(maps, torch.cat([one[level] for one in alone]))


def test_every_weight_gets_a_gradient() -> None:
    model = tiny(7)
    torch.stack([m.square().sum() for m in model(torch.randn(1, 3, 64, 64))]).sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_half_precision_is_near() -> None:
    model = tiny(7)
    images = torch.randn(1, 3, 90, 70)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(images)
        low = model.double()(images.double())
    for reference, near, twice in zip(exact, mixed, low, strict=True):
        assert float((near - reference).norm() / reference.norm()) < 0.05
        assert twice.dtype == torch.float64
        torch.testing.assert_close(reference.double(), twice, rtol=0, atol=1e-5)


def test_relative_positions_by_hand() -> None:
    index = relative_positions(2)  # cells (0,0) (0,1) (1,0) (1,1); table rows count offsets -1..1 x -1..1
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


@pytest.mark.parametrize(
    ("checkpoint", "prefix", "config"),
    [
        ("hdetr_swin_l", "backbone.0.body.", SWIN_L_WINDOW7),
        ("dino_swin_l_4scale", "backbone.0.", SWIN_L_WINDOW12),
    ],
)
def test_keys_are_the_official_ones(shared: Path, checkpoint: str, prefix: str, config: SwinConfig) -> None:
    with torch.device("meta"):
        model = Swin(config)
    shapes = shapes_of(model)
    assert shapes == official_shapes(shared, checkpoint, prefix)
    assert len(shapes) == 355
