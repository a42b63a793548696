"""The masked-attention decoder beside that of `transformers`, and properties that hold at any width."""

from typing import Any

import pytest
import torch
from toy import EQUAL, FINE, HDETR, SMALL, random_features
from toy import widths as widths_of

from pipeline.config import from_table
from pipeline.data.transforms import xywh_to_xyxy
from pipeline.describe import describe, detector_inputs
from pipeline.errors import PipelineError
from pipeline.heads.base import Widths
from pipeline.heads.instances import instances, mask_boxes
from pipeline.heads.mask2former import Mask2Former, Mask2FormerConfig
from pipeline.heads.mask2former.decoder import MaskedAttentionDecoder
from pipeline.heads.mask2former.start import LearnedStart
from pipeline.heads.prior import depth
from pipeline.masks import rle
from pipeline.masks.paste import paste
from pipeline.training.recipe import load_recipe, override

TINY: dict[str, object] = {"hidden": 16, "heads": 4, "feed_forward": 32, "queries": 6, "layers": 4}
DEIMV2 = widths_of({8: 96, 16: 96}, c1=64, query_dim=96)
VARIANTS: dict[str, tuple[Widths, dict[str, object]]] = {
    "learned": (SMALL, TINY),
    "detector": (SMALL, {**TINY, "start": "detector"}),
    "finer masks": (SMALL, {**TINY, "start": "detector", "mask_cells": 2}),
    "one level": (EQUAL, {**TINY, "levels": 1}),
    "five-scale": (FINE, {**TINY, "start": "detector", "layers": 2}),
}
each_variant = pytest.mark.parametrize(("widths", "settings"), VARIANTS.values(), ids=VARIANTS)


def build(widths: Widths, **settings: object) -> Mask2Former:
    torch.manual_seed(0)
    return Mask2Former(from_table(Mask2FormerConfig, settings, "test"), widths).eval()


def test_three_levels_of_256_channels_have_the_entries_and_parameters_of_mask2former() -> None:
    with torch.device("meta"):
        start = LearnedStart(100, 256)
        decoder = MaskedAttentionDecoder([256] * 3, width=256, heads=8, layers=9, feed_forward=2048, classes=80)
    both = [*start.parameters(), *decoder.parameters()]
    assert len(both) == 175
    assert sum(parameter.numel() for parameter in both) == 14_479_441


def test_all_predictions_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    from transformers import Mask2FormerConfig as PeerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

    torch.manual_seed(1)
    sizes: Any = {"hidden_dim": 32, "mask_feature_size": 32, "num_queries": 7, "num_attention_heads": 4}
    sizes |= {"dim_feedforward": 48, "decoder_layers": 10, "dropout": 0.0, "num_labels": 5}
    peer = Mask2FormerTransformerModule(32, PeerConfig(**sizes)).eval()
    with torch.no_grad():  # norms that do something
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    start = LearnedStart(7, 32)
    decoder = MaskedAttentionDecoder([32] * 3, width=32, heads=4, layers=9, feed_forward=48, classes=5).eval()
    start.load_state_dict({"content": peer.queries_features.weight, "positions": peer.queries_embedder.weight})
    own = decoder.state_dict()
    copied = {name: tensor for name, tensor in map_keys(peer.state_dict()).items() if name in own}
    assert set(own) - set(copied) == {"class_embed.weight", "class_embed.bias"}  # there they are outside of the module
    decoder.load_state_dict({**own, **copied})
    maps = [torch.randn(2, 32, h, w) for h, w in ((4, 6), (8, 12), (15, 23))]
    pixels = torch.randn(2, 32, 30, 46) * 0.3 + torch.randn(2, 32, 1, 1)  # so that some masks are empty
    with torch.no_grad():
        expected = peer(maps, pixels)
        found = decoder(maps, pixels, start(2))
    assert len(found) == len(expected.masks_queries_logits) == 10
    some_empty = False
    for mine, masks, states in zip(
        found, expected.masks_queries_logits, expected.intermediate_hidden_states, strict=True
    ):
        torch.testing.assert_close(mine.mask_logits, masks, atol=1e-5, rtol=1e-5)
        classes = decoder.class_embed(states.transpose(0, 1))
        torch.testing.assert_close(mine.class_logits, classes, atol=1e-5, rtol=1e-5)
        some_empty |= bool((masks.flatten(2).amax(-1) < 0).any())
    assert some_empty  # else the rule to attend everywhere was not seen at work


def map_keys(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of `transformers` -> ours."""
    names = {
        "decoder.": "", "cross_attn_layer_norm": "cross_norm", "self_attn_layer_norm": "self_norm",
        "final_layer_norm": "feed_forward_norm", "cross_attn": "cross_attention", "self_attn": "self_attention",
        "fc1": "expand", "fc2": "reduce", "layernorm": "norm", "mask_predictor.mask_embedder": "mask_embed.layers",
        "level_embed.weight": "level_embed", "layers.0.0.": "layers.0.", "layers.1.0.": "layers.1.",
        "layers.2.0.": "layers.2.",
    }  # fmt: skip
    mapped: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        for theirs, ours in names.items():
            if not theirs.endswith(".0.") or "mask_embed" in name:
                name = name.replace(theirs, ours)
        mapped[name] = tensor
    for layer in {name.split(".self_attention.")[0] for name in mapped if ".self_attention." in name}:
        prefix = f"{layer}.self_attention."
        for kind in ("weight", "bias"):
            parts = [mapped.pop(f"{prefix}{part}_proj.{kind}") for part in "qkv"]
            mapped[f"{prefix}in_proj_{kind}"] = torch.cat(parts)
    return mapped


@each_variant
def test_a_batch_equals_its_images_alone(widths: Widths, settings: dict[str, object]) -> None:
    head = build(widths, **settings)
    features = random_features(widths, [(96, 128), (130, 70), (96, 128)])
    counts = [5, 3, 0]
    together = head.predict(features, counts)
    for row, n in enumerate(counts):
        alone = head.predict(features.image(row), [n])[0]
        for name in ("mask_logits", "boxes", "scores", "frames"):
            mine, own = getattr(together[row], name), getattr(alone, name)
            torch.testing.assert_close(mine, own, atol=1e-4, rtol=1e-4)
        assert torch.equal(together[row].labels, alone.labels)
        assert settings.get("start") != "detector" or (n > 0) == (len(alone.scores) > 0)


@each_variant
def test_every_parameter_learns(widths: Widths, settings: dict[str, object]) -> None:
    head = build(widths, **settings).train()
    features = random_features(widths, [(96, 128), (130, 70)])
    layers = head(features, [features.boxes[0], features.boxes[1, :0]], [features.queries[0], features.queries[1, :0]])
    parts = [one.mask_logits.square().sum() + one.class_logits.square().sum() for layer in layers for one in layer]
    torch.stack(parts).sum().backward()
    unused = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unused == []


def test_the_box_of_a_mask_is_that_of_the_pasted_one() -> None:
    """Grids of 2 x 2 pixels a cell, smooth so that edges lie anywhere between the cells; one is empty."""
    torch.manual_seed(0)
    logits = torch.nn.functional.interpolate(torch.randn(1, 6, 4, 5), (20, 30), mode="bicubic")[0] - 0.8
    logits[0] = -1
    scale = 40  # pixels a cell: the box of the pasted mask is then as fine as a fortieth of one
    counts = paste(logits, torch.tensor([[0.5, 0.5, 1, 1]]).expand(6, 4), (20 * scale, 30 * scale))
    for box, one in zip(mask_boxes(logits), counts, strict=True):
        pasted = xywh_to_xyxy(torch.tensor(rle.box_xywh(one, (20 * scale, 30 * scale)))) / scale
        torch.testing.assert_close(box, pasted.float(), atol=1 / scale + 1e-4, rtol=0)


def test_instances_are_pairs_of_query_and_class() -> None:
    """Two queries, two classes: the best three of four pairs. Their quality is told where they are pasted."""
    mask_logits = torch.full((2, 4, 6), -4.0)
    mask_logits[0, 1:3, 1:3], mask_logits[1, 2:, 3:] = 2.0, 0.2
    probs = torch.tensor([[0.5, 0.1, 0.4], [0.3, 0.6, 0.1]])
    found = instances(probs[:, :2], mask_logits, (3.5, 6.0), 3)
    assert found.labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.5, 0.3]))
    assert found.judge_pasted
    assert found.own_boxes
    assert torch.equal(found.mask_logits[1], mask_logits[0])
    # the grid is half a cell longer than the view, and so is what its masks span
    torch.testing.assert_close(found.grid_boxes[0], torch.tensor([0.5, 4 / 3.5 / 2, 1.0, 4 / 3.5]))
    assert found.boxes[0, 1].item() + found.boxes[0, 3].item() / 2 == pytest.approx(1)


def test_levels_come_coarse_to_fine_and_in_turn() -> None:
    head = build(HDETR, **TINY)
    assert head.encoder == ("e64", "e32", "e16", "e8")
    assert build(HDETR, **TINY, levels=3).encoder == ("e32", "e16", "e8")
    assert build(DEIMV2, **TINY).encoder == ("e16", "e8")


def test_two_labels_of_one_query_are_two_queries() -> None:
    """A detector may choose a query twice, with two labels: then only these differ."""
    head = build(SMALL, **TINY, start="detector")
    features = random_features(SMALL, [(96, 128)])
    features.boxes[:, 1], features.queries[:, 1] = features.boxes[:, 0], features.queries[:, 0]
    features.labels[:, 0], features.labels[:, 1] = 2, 5
    final = head(features, list(features.boxes), list(features.queries))[-1][0]
    assert (final.class_logits[0] - final.class_logits[1]).abs().max() > 1e-3


def test_queries_say_first_what_the_detector_said() -> None:
    """With nothing to add, the label of each detection at its score, and all of its box."""
    head = build(SMALL, **TINY, start="detector")
    for layer in (head.decoder.class_embed, head.decoder.mask_embed.layers[-1]):
        torch.nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
        torch.nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    features = random_features(SMALL, [(96, 128)])
    features.boxes[0, 0], features.boxes[0, 1] = torch.tensor([[0.5, 0.25, 0.5, 0.25], [0.3, 0.7, 0.2, 0.4]])
    features.scores[0, :2] = torch.tensor([0.9, 0.2])
    said = head(features, list(features.boxes), list(features.queries))[-1][0]
    for n, score in enumerate((0.9, 0.2)):
        others = said.class_logits.shape[1] - 1
        odds = score / (1 - score)
        probs = said.class_logits[n].softmax(-1)
        assert probs[features.labels[0, n]].item() == pytest.approx(odds / (odds + others), abs=1e-4)
    # cells of 4 x 4 pixels: the first box is on their edges, the second is not
    torch.testing.assert_close(mask_boxes(said.mask_logits[:1]), torch.tensor([[8.0, 3.0, 24.0, 9.0]]))
    found = mask_boxes(said.mask_logits[1:2])
    torch.testing.assert_close(found, torch.tensor([[6.4, 12.0, 12.8, 21.6]]), atol=0.3, rtol=0)


def test_how_deep_a_cell_is_in_a_box() -> None:
    torch.manual_seed(0)
    boxes = torch.rand(2, 5, 4) * torch.tensor([1, 1, 0.6, 0.6])
    found = depth(boxes, (6, 9))
    for image, row, y, x in torch.cartesian_prod(*(torch.arange(side) for side in found.shape)).tolist():
        cx, cy, w, h = (boxes[image, row] * torch.tensor([9, 6, 9, 6])).tolist()
        inside = min(w / 2 - abs(x + 0.5 - cx), h / 2 - abs(y + 0.5 - cy))
        expected = max(-4, min(1, inside / (max(1, min(w, h)) / 2)))
        assert found[image, row, y, x].item() == pytest.approx(expected, abs=1e-5)


def test_half_precision_is_the_same_but_for_rounding() -> None:
    head = build(SMALL, **{**TINY, "start": "detector", "layers": 1})
    features = random_features(SMALL, [(96, 128), (130, 70)])
    boxes, queries = list(features.boxes), list(features.queries)
    with torch.no_grad():
        exact = head(features, boxes, queries)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = head(features, boxes, queries)[0]
    for mine, half in zip(exact, rounded, strict=True):
        difference = (mine.mask_logits - half.mask_logits.float()).norm() / mine.mask_logits.norm()
        assert 0 < difference < 0.02


def test_what_it_costs() -> None:
    inputs = detector_inputs("hdetr-r50")
    recipe = override(load_recipe("mask2former"), {"levels": "3"})
    found = describe(recipe, inputs)
    assert found.parts["decoder"].params + found.parts["learned"].params == 14_479_441
    cells = 200 * 284
    convolutions = cells * (256 * 256 * (1 + 9 + 1))
    assert found.parts["pixels"].macs == convolutions + 4 * cells * 256
    assert found.parts["decoder"].macs > 10 * 100 * cells * 256  # the masks of ten predictions alone
    assert sum(cost.macs for cost in found.parts.values()) == found.macs
    detected = describe(override(recipe, {"start": "detector"}), inputs)
    assert "detected" in detected.parts
    assert detected.macs > found.macs - 1e9


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"hidden": 18}, "multiple of 4"),
        ({"hidden": 20, "heads": 8}, "heads = 8"),
        ({"layers": 0}, "layers is 0"),
        ({"no_object": 0.0}, "no_object"),
        ({"levels": -1}, "levels is -1"),
    ],
)
def test_contradictions_are_named(settings: dict[str, object], error: str) -> None:
    with pytest.raises(PipelineError, match=error):
        from_table(Mask2FormerConfig, settings, "test")


def test_without_c1_it_says_so() -> None:
    with pytest.raises(PipelineError, match="no 'c1' map"):
        build(Widths({"e8": 16}, {"e8": 8}, ("e8",), query_dim=16, classes=7), **TINY)
