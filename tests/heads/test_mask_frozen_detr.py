"""The head against the paper's parameter counts, and properties that hold at any width."""

import pytest
import torch
from toy import HDETR, SMALL, random_features

from pipeline.config import from_table
from pipeline.heads.base import Widths
from pipeline.heads.mask_frozen_detr import HeadConfig, MaskFrozenDetr

PLAIN = {"neck": False, "mask_scoring": False, "query_encoder": [], "hidden": 256}
PAPER = [  # (table, changes to the default head, millions of parameters as printed)
    ("2, 1 layer", {**PLAIN, "image_layers": 1, "box_encoder": "none"}, 0.76),
    ("2, 2 layers", {**PLAIN, "image_layers": 2, "box_encoder": "none"}, 1.51),
    ("2, 3 layers", {**PLAIN, "image_layers": 3, "box_encoder": "none"}, 2.27),
    ("3, 1 layer", {**PLAIN, "box_layers": 1}, 2.46),
    ("3, 2 layers", {**PLAIN, "box_layers": 2}, 3.14),
    ("3, 3 layers", {**PLAIN, "box_layers": 3}, 3.82),
    ("4, 128", {**PLAIN, "hidden": 128}, 2.07),
    ("4, 96", {**PLAIN, "hidden": 96}, 1.87),
    ("4, 64", {**PLAIN, "hidden": 64}, 1.71),
    ("5, FFN", {**PLAIN, "hidden": 128, "query_encoder": ["ffn"]}, 2.33),
    ("5, FFN O2O", {**PLAIN, "hidden": 128, "query_encoder": ["o2o", "ffn"]}, 2.53),
    ("5, FFN B2O", {**PLAIN, "hidden": 128, "query_encoder": ["b2o", "ffn"]}, 2.46),
    ("12, neck", {"mask_scoring": False}, 2.53),
    ("12, neck and mask scoring", {}, 3.26),
    ("10, 16 x 16", {"roi": 16}, 2.97),
    ("10, 64 x 64", {"roi": 64}, 4.44),
]


def build(widths: Widths, **settings: object) -> MaskFrozenDetr:
    torch.manual_seed(0)
    return MaskFrozenDetr(from_table(HeadConfig, settings, "test"), widths).eval()


@pytest.mark.parametrize(("table", "settings", "millions"), PAPER, ids=[row[0] for row in PAPER])
def test_parameters_of_the_paper(table: str, settings: dict[str, object], millions: float) -> None:
    head = build(HDETR, **settings)
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 2) == millions


VARIANTS = [
    {"hidden": 16},
    {"hidden": 24, "query_encoder": ["o2o", "b2o", "ffn"]},
    {"hidden": 16, "box_encoder": "none", "query_encoder": []},
    {"hidden": 16, "image_encoder": "none", "neck": False, "mask_scoring": False},
    {
        "hidden": 16,
        "box_encoder": "unet",
        "box_layers": 3,
        "query_modulation": True,
        "query_encoder": [],
        "mask_bias": True,
        "mask_scoring": False,
    },
]


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_batch_equals_its_images_alone(settings: dict[str, object]) -> None:
    head = build(SMALL, roi=8, **settings)
    sizes = [(96, 128), (130, 70), (96, 128)]
    features = random_features(SMALL, sizes)
    counts = [5, 3, 0]
    together = head.predict(features, counts)
    for row, n in enumerate(counts):
        alone = head.predict(features.image(row), [n])[0]
        assert together[row].mask_logits.shape == (n, 8, 8)
        assert torch.allclose(together[row].mask_logits, alone.mask_logits, atol=1e-5)
        assert torch.allclose(together[row].scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS)
def test_every_parameter_learns(settings: dict[str, object]) -> None:
    head = build(SMALL, roi=8, **settings).train()
    features = random_features(SMALL, [(96, 128)])
    output = head(features, [features.boxes[0]], [features.queries[0]])
    loss = output.mask_logits.square().sum() + (output.iou.square().sum() if output.iou is not None else 0)
    loss.backward()
    without = [name for name, p in head.named_parameters() if p.grad is None]
    assert without == []


def test_neck_sees_c1() -> None:
    features = random_features(SMALL, [(96, 128)])
    blind = random_features(SMALL, [(96, 128)])
    blind.maps["c1"].zero_()
    boxes, queries = [features.boxes[0]], [features.queries[0]]
    for neck, expected in ((True, False), (False, True)):
        head = build(SMALL, roi=8, hidden=16, neck=neck)
        same = torch.equal(head(features, boxes, queries).mask_logits, head(blind, boxes, queries).mask_logits)
        assert same is expected


@torch.no_grad()
def test_mask_scoring_gives_the_score() -> None:
    head = build(SMALL, roi=8, hidden=16)
    features = random_features(SMALL, [(96, 128)])
    iou = head(features, [features.boxes[0]], [features.queries[0]]).iou
    assert iou is not None
    quality = torch.tensor([iou[n, label] for n, label in enumerate(features.labels[0])]).clamp(0, 1)
    assert torch.allclose(head.predict(features)[0].scores, features.scores[0] * quality, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"roi": 7}, "roi"),
        ({"hidden": 20}, "multiple of heads"),
        ({"roi": 20}, "multiple of 8"),
        ({"query_modulation": True}, "unet"),
        ({"box_encoder": "none"}, "query_encoder"),
        ({"hiden": 64}, "'hidden'"),
    ],
)
def test_contradictions_are_refused_by_name(settings: dict[str, object], words: str) -> None:
    with pytest.raises(Exception, match=words):
        from_table(HeadConfig, settings, "test")
