"""The whole head: decoder beside that of the DINO detector, official names and counts, properties at any width."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import EQUAL, FINE, HDETR, SMALL, random_features
from toy import widths as widths_of

from pipeline.config import from_table
from pipeline.data.transforms import cxcywh_to_xyxy
from pipeline.describe import describe, detector_inputs
from pipeline.detectors.dino import Dino
from pipeline.detectors.positions import Pyramid
from pipeline.errors import PipelineError
from pipeline.heads.base import Widths
from pipeline.heads.mask_dino import MaskDino, MaskDinoConfig
from pipeline.heads.mask_dino.decoder import MaskDinoDecoder
from pipeline.heads.mask_dino.denoising import Denoising
from pipeline.heads.mask_dino.official import official_keys
from pipeline.heads.mask_dino.prediction import LayerPrediction
from pipeline.heads.mask_dino.readout import Readout
from pipeline.heads.mask_dino.selection import Queries, Tokens
from pipeline.training.recipe import load_recipe, override

TINY: dict[str, object] = {
    "hidden": 16,
    "heads": 4,
    "sampling_points": 2,
    "feed_forward": 32,
    "queries": 6,
    "layers": 3,
}
DI: dict[str, object] = {**TINY, "interaction_layers": 2, "first_selected": 9, "guiding_tokens": 3}
DEIMV2 = widths_of({8: 96, 16: 96}, c1=64, query_dim=96)
VARIANTS: dict[str, tuple[Widths, dict[str, object]]] = {
    "mask-dino": (SMALL, TINY),
    "di-maskdino": (SMALL, DI),
    "residual": (EQUAL, {**DI, "residual": True}),
    "one level": (EQUAL, {**DI, "levels": 1}),
    "five-scale": (FINE, DI),
}
each_variant = pytest.mark.parametrize(("widths", "settings"), VARIANTS.values(), ids=VARIANTS)
DETECTED: dict[str, object] = {"start": "detector", "denoising": 0}
STARTED: dict[str, tuple[Widths, dict[str, object]]] = {
    "mask-dino, detected": (SMALL, {**TINY, **DETECTED}),
    "di-maskdino, detected": (SMALL, {**DI, **DETECTED, "residual": True}),
    "detected, finer masks": (EQUAL, {**DI, **DETECTED, "mask_cells": 2}),
}
every_variant = pytest.mark.parametrize(
    ("widths", "settings"), [*VARIANTS.values(), *STARTED.values()], ids=[*VARIANTS, *STARTED]
)


def build(widths: Widths, **settings: object) -> MaskDino:
    """With weights that move boxes too."""
    torch.manual_seed(0)
    head = MaskDino(from_table(MaskDinoConfig, settings, "test"), widths).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return head


def denoising_of(images: int, width: int, groups: int = 2, each: int = 2) -> Denoising:
    n = groups * each
    pairs = [torch.stack([torch.arange(n), torch.arange(n) % each], dim=1)] * images
    return Denoising(torch.randn(images, n, width), torch.randn(images, n, 4), groups, pairs)


def test_boxes_and_states_of_the_layers_are_those_of_the_dino_detector() -> None:
    """Same weights, references away from the edge, where the two cut differently."""
    torch.manual_seed(0)
    width, classes, shapes = 16, 3, ((3, 4), (6, 8))
    backbone: Any = nn.Identity()
    backbone.channels = [8, 8, 8, 8]
    sizes: dict[str, Any] = {"heads": 4, "points": 2, "feed_forward": 24}
    peer = Dino(
        backbone,
        classes=classes,
        queries=7,
        width=32,
        levels=4,
        encoder_layers=0,
        decoder_layers=0,
        heads=8,
        points=4,
        feed_forward=8,
        query_tap="normed",
    )
    decoder = MaskDinoDecoder(width, layers=3, levels=2, guiding_tokens=0, **sizes)
    readout = Readout(width, classes)
    with torch.no_grad():
        for parameter in (*decoder.parameters(), *readout.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    peer.layers, peer.ref_point_head = decoder.layers, decoder.place
    peer.norm, peer.class_embed, peer.bbox_embed = readout.norm, readout.class_embed, readout.box_embed
    peer.tgt_embed = nn.Embedding(7, width)
    pyramid = Pyramid.of_masks([torch.zeros(1, h, w, dtype=torch.bool) for h, w in shapes])
    memory, references = torch.randn(1, 60, width), torch.rand(1, 7, 4) * 0.4 + 0.3
    with torch.no_grad():
        states, _, boxes = peer.decode(peer.tgt_embed.weight, references, memory, pyramid)
        queries = Queries(peer.tgt_embed.weight[None], references.logit())
        tokens = Tokens(memory, torch.zeros(1, 60, width), pyramid)
        said = decoder(queries, tokens, torch.randn(1, width, 12, 16), readout)
        assert len(said) == len(boxes) + 1
        torch.testing.assert_close(said[0].boxes, references)
        for mine, state, box in zip(said[1:], states, boxes, strict=True):
            torch.testing.assert_close(mine.boxes, box)
            twice = readout.class_embed(readout.norm(state))  # the official code norms a second time
            torch.testing.assert_close(mine.class_logits, twice)


@pytest.mark.parametrize(
    ("name", "entries", "parameters"), [("di-maskdino", 330, 14_775_896), ("mask-dino", 333, 14_547_668)]
)
def test_official_names_and_counts(name: str, entries: int, parameters: int) -> None:
    """Of the official predictors, aliases counted as entries."""
    with torch.device("meta"):
        head = MaskDino(load_recipe(name).head, HDETR)
    weights, keys = head.state_dict(), official_keys(head)
    assert len(keys) == entries
    assert set(keys.values()) == {own for own in weights if not own.startswith("pixels.")}
    assert sum(weights[own].numel() for own in set(keys.values())) == parameters


def test_names_and_shapes_are_those_of_the_official_predictor(shared: Path) -> None:
    with torch.device("meta"):
        head = MaskDino(load_recipe("di-maskdino").head, HDETR)
    weights = head.state_dict()
    expected = (shared / "facts/keys/dimaskdino_predictor_patterns.txt").read_text().splitlines()
    found = {
        re.sub(r"\.\d+\.", ".N.", theirs) + f" {tuple(weights[own].shape)}"
        for theirs, own in official_keys(head).items()
    }
    assert found == set(expected)


@every_variant
def test_a_batch_equals_its_images_alone(widths: Widths, settings: dict[str, object]) -> None:
    head = build(widths, **settings)
    features = random_features(widths, [(96, 128), (130, 70), (96, 128)])
    together = head.predict(features)
    for row, mine in enumerate(together):
        alone = head.predict(features.image(row))[0]
        for name in ("mask_logits", "boxes", "scores", "frames"):
            torch.testing.assert_close(getattr(mine, name), getattr(alone, name), atol=1e-4, rtol=1e-4)
        assert torch.equal(mine.labels, alone.labels)


@every_variant
def test_every_parameter_learns(widths: Widths, settings: dict[str, object]) -> None:
    head = build(widths, **settings).train()
    denoising = None
    if head.config.denoising:
        plain = denoising_of(2, head.config.hidden)
        denoising = Denoising(plain.content + head.label_embed.weight[0], plain.references, 2, plain.pairs)
    said = head.look(random_features(widths, [(96, 128)] * 2), denoising, every_mask=True)
    parts: list[Tensor] = []
    for one in (*said.layers, said.selected, *said.interaction, *said.denoised):
        masks = torch.zeros(()) if one.mask_logits is None else one.mask_logits.square().sum()
        parts += [masks, one.class_logits.square().sum(), one.boxes.square().sum()]
    torch.stack(parts).sum().backward()
    unused = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unused == []


@each_variant
def test_denoising_queries_change_nothing_for_the_others(widths: Widths, settings: dict[str, object]) -> None:
    """They carry the answer: what is told without them is told with them, and each group is alone too."""
    head = build(widths, **settings)
    features = random_features(widths, [(96, 128)] * 2)
    denoising = denoising_of(2, head.config.hidden)
    with torch.no_grad():
        without, both = head.look(features, every_mask=True), head.look(features, denoising, every_mask=True)
        one = Denoising(denoising.content[:, :2], denoising.references[:, :2], 1, [])
        first = head.look(features, one, every_mask=True)
    assert len(without.layers) == len(both.layers) == len(both.denoised) == head.config.layers + 1
    assert without.denoised == ()
    assert all(prediction.boxes.shape == (2, 4, 4) for prediction in both.denoised)
    for mine, expected in zip(both.layers, without.layers, strict=True):
        same(mine, expected)
    for mine, expected in zip(both.denoised, first.denoised, strict=True):
        same(LayerPrediction(mine.class_logits[:, :2], mine.boxes[:, :2], None), expected)


def same(found: LayerPrediction, expected: LayerPrediction) -> None:
    torch.testing.assert_close(found.class_logits, expected.class_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-5, rtol=1e-4)
    if found.mask_logits is not None and expected.mask_logits is not None:
        torch.testing.assert_close(found.mask_logits, expected.mask_logits, atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("settings", "cells"), [(TINY, 1), (DI, 2)])
def test_a_detector_start_says_at_first_what_the_detector_said(settings: dict[str, object], cells: int) -> None:
    torch.manual_seed(0)
    config = from_table(MaskDinoConfig, {**settings, **DETECTED, "mask_cells": cells}, "test")
    head = MaskDino(config, SMALL).eval()
    for layer in (head.readout.class_embed, head.readout.mask_embed.layers[-1]):
        nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    features = random_features(SMALL, [(96, 128)])
    features.scores.fill_(0.7)
    said = head.look(features, every_mask=True)
    assert said.denoised == ()
    for one in (said.selected, said.layers[-1]):
        torch.testing.assert_close(one.boxes, features.boxes, atol=1e-4, rtol=0)  # no layer moves a box yet
        scores = one.class_logits.sigmoid()
        assert torch.equal(scores.argmax(-1), features.labels)
        torch.testing.assert_close(scores.amax(-1), features.scores)
        assert (scores < 0.02).sum() == 5 * 6
        assert one.mask_logits is not None
        assert one.mask_logits.shape == (1, 5, 24 * cells, 32 * cells)
        filled = one.mask_logits[0] > 0
        for mask, box in zip(filled, cxcywh_to_xyxy(features.boxes[0]), strict=True):
            x0, y0, x1, y1 = (box * torch.tensor([32, 24, 32, 24]) * cells).tolist()
            y, x = torch.meshgrid(torch.arange(24 * cells) + 0.5, torch.arange(32 * cells) + 0.5, indexing="ij")
            assert torch.equal(mask, (x > x0) & (x < x1) & (y > y0) & (y < y1))


@torch.no_grad()
def test_finer_masks_span_the_same_view() -> None:
    features = random_features(SMALL, [(90, 126)])  # no whole cells: the grid is longer than the view
    plain, fine = (build(SMALL, **TINY, mask_cells=cells).predict(features)[0] for cells in (1, 4))
    assert fine.mask_logits.shape[1:] == (23 * 4, 32 * 4)
    torch.testing.assert_close(fine.grid_boxes[0], plain.grid_boxes[0])


def test_guidance_is_seen_from_the_second_layer_on() -> None:
    head = build(SMALL, **DI)
    features = random_features(SMALL, [(96, 128)])
    with torch.no_grad():
        before = head.look(features, every_mask=True)
        assert head.decoder.guidance is not None
        head.decoder.guidance.linear2.bias.add_(torch.randn(16))
        after = head.look(features, every_mask=True)
    moved = [
        not torch.equal(getattr(a, what), getattr(b, what))
        for a, b in zip(before.layers, after.layers, strict=True)
        for what in ("class_logits", "boxes", "mask_logits")
    ]
    assert moved == [False] * 6 + [True] * 6


def test_only_the_loss_needs_every_mask() -> None:
    head = build(SMALL, **DI)
    with torch.no_grad():
        said = head.look(random_features(SMALL, [(96, 128)]))
    assert [one.mask_logits is None for one in said.layers] == [True, True, True, False]
    assert said.selected.boxes.shape == (1, 9, 4)
    assert [one.boxes.shape for one in said.interaction] == [(1, 9, 4)] * 2


def test_predictions_are_ranked_pairs_of_query_and_class_with_the_boxes_of_the_queries() -> None:
    head = build(SMALL, **DI, detections=10)
    features = random_features(SMALL, [(90, 126)])  # no whole cells: the grid is longer than the view
    with torch.no_grad():
        final = head(features, [], [])[0]
    found = head.predict(features)[0]
    assert final.mask_logits is not None
    probs = final.class_logits.sigmoid()
    pairs = [(query, label) for query in range(6) for label in range(7)]
    ranked = sorted(pairs, key=lambda pair: -probs[pair].item())[:10]
    assert found.labels.tolist() == [label for _, label in ranked]
    torch.testing.assert_close(found.scores, torch.tensor([probs[pair] for pair in ranked]))
    assert found.judge_pasted  # the quality of the masks comes in where they are pasted: tests/masks/test_paste.py
    torch.testing.assert_close(found.boxes, final.boxes[[query for query, _ in ranked]])
    right, bottom = cxcywh_to_xyxy(found.grid_boxes)[0, 2:].tolist()
    assert (right, bottom) == pytest.approx((32 * 4 / 126, 23 * 4 / 90))


def test_levels_come_coarse_to_fine() -> None:
    assert build(HDETR, **TINY).encoder == ("e64", "e32", "e16", "e8")
    assert build(HDETR, **TINY, levels=3).encoder == ("e32", "e16", "e8")
    assert build(DEIMV2, **TINY).encoder == ("e16", "e8")


def test_half_precision_is_the_same_but_for_rounding() -> None:
    """One layer, and no selection that a rounding could change: all tokens of a small map."""
    head = build(SMALL, **{**DI, "layers": 2, "queries": 16, "first_selected": 16, "guiding_tokens": 16, "levels": 1})
    features = random_features(SMALL, [(64, 64)])
    with torch.no_grad():
        exact = head.look(features)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = head.look(features)
    for mine, half in ((exact.layers[-1], rounded.layers[-1]), (exact.selected, rounded.selected)):
        assert half.boxes.dtype == torch.float32
        order, other = (one.boxes[0, :, 0].argsort() for one in (mine, half))
        for name in ("class_logits", "boxes", "mask_logits"):
            a, b = getattr(mine, name)[0, order], getattr(half, name)[0, other].float()
            assert 0 < (a - b).norm() / a.norm() < 0.03, name


def test_what_it_costs() -> None:
    inputs = detector_inputs("hdetr-r50")
    found = describe(load_recipe("di-maskdino"), inputs)
    assert found.params == 14_775_896 + found.parts["pixels"].params
    assert sum(cost.macs for cost in found.parts.values()) == found.macs
    cells, tokens = 200 * 284, 100 * 142 + 50 * 71 + 25 * 36 + 13 * 18
    assert found.parts["pixels"].macs == cells * 256 * 256 * (1 + 9 + 1) + 4 * cells * 256
    # every token once through the projection, then its class, then the masks of 600 and of the last 300
    assert found.parts["selection"].macs == tokens * 256 * 256
    assert found.parts["readout"].macs > tokens * 256 * 80 + (600 + 300) * cells * 256
    plain = describe(override(load_recipe("di-maskdino"), {"guiding_tokens": "0"}), inputs)
    guidance = tokens * 256 * (2 * 256 + 2 * 50 + 2 * 2048) + cells * 256 * 256 * 9
    assert found.parts["decoder"].macs - plain.parts["decoder"].macs == pytest.approx(guidance, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"hidden": 18}, "multiple of 4"),
        ({"hidden": 20, "heads": 8}, "heads = 8"),
        ({"layers": 0}, "layers is 0"),
        ({"levels": -1}, "levels is -1"),
        ({"interaction_layers": 2, "first_selected": 200}, "first_selected = 200"),
        ({"residual": True}, "residual"),
        ({"guiding_tokens": 301}, "guiding_tokens = 301"),
        ({"guiding_tokens": 50, "layers": 1}, "layers of 2 or more"),
        ({"noise": 1.5}, "noise is 1.5"),
        ({"start": "detector"}, "denoising=0"),
        ({"mask_cells": 3}, "mask_cells"),
    ],
)
def test_contradictions_are_named(settings: dict[str, object], error: str) -> None:
    with pytest.raises(PipelineError, match=error):
        from_table(MaskDinoConfig, settings, "test")


def test_without_c1_it_says_so() -> None:
    with pytest.raises(PipelineError, match="no 'c1' map"):
        build(Widths({"e8": 16}, {"e8": 8}, ("e8",), query_dim=16, classes=7), **TINY)
