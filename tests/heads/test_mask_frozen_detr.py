"""The head against the paper's parameter counts, and properties that hold at any width."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align
from toy import EQUAL, FINE, HDETR, SMALL, random_features
from toy import widths as widths_of

from pipeline.config import from_table
from pipeline.errors import PipelineError
from pipeline.heads.base import Widths, boxes_in_pixels
from pipeline.heads.mask_frozen_detr import HeadConfig, MaskFrozenDetr
from pipeline.heads.mask_frozen_detr.mask_scoring import MaskScoring


def build(widths: Widths, **settings: object) -> MaskFrozenDetr:
    torch.manual_seed(0)
    return MaskFrozenDetr(from_table(HeadConfig, settings, "test"), widths).eval()


def test_the_default_head_has_the_parameters_of_table_12() -> None:
    assert sum(p.numel() for p in build(HDETR).parameters()) == pytest.approx(3.26e6, abs=5e3)


PLAIN = {"hidden": 16, "mask_scoring": False, "query_encoder": []}
UNET = {**PLAIN, "box_encoder": "unet", "box_layers": 3, "query_modulation": True, "mask_bias": True}
WITHOUT_C1 = Widths({"e8": 16}, {"e8": 8}, ("e8",), query_dim=16, classes=7)
WIDE_C1 = widths_of({16: 24, 32: 24}, c1=40, query_dim=24, classes=7)
VARIANTS: dict[str, tuple[Widths, dict[str, object]]] = {
    "default": (SMALL, {"hidden": 16}),
    "all query layers": (SMALL, {"hidden": 24, "query_encoder": ["o2o", "b2o", "ffn"]}),
    "only b2o": (SMALL, {**PLAIN, "query_encoder": ["b2o"]}),
    "no box encoder": (SMALL, {"hidden": 16, "box_encoder": "none", "query_encoder": []}),
    "no image encoder, no C1": (SMALL, {**PLAIN, "image_encoder": "none", "neck": False, "c1": False}),
    "C1 as it is, wider": (WIDE_C1, {**PLAIN, "neck": False, "query_encoder": ["ffn"]}),
    "C1 as it is": (EQUAL, {**PLAIN, "neck": False, "box_position": "none"}),
    "swin": (SMALL, {**PLAIN, "image_encoder": "swin", "image_window": 4, "box_encoder": "swin", "box_window": 4}),
    "convnext": (SMALL, {**PLAIN, "image_encoder": "convnext", "image_layers": 3, "box_encoder": "convnext"}),
    "segmenter": (SMALL, {"hidden": 16, "mask_head": "segmenter", "box_norm_first": True}),
    "no C1 to be had": (WITHOUT_C1, {**PLAIN, "neck": False, "c1": False}),
    "5-scale": (FINE, {"hidden": 16, "image_layers": 1}),
    "older alignment, position on the input": (SMALL, {"hidden": 16, "aligned": False, "box_position_on": "input"}),
    "scoring of logits that teaches": (
        SMALL,
        {"hidden": 16, "mask_scoring_input": "logits", "mask_scoring_gradient": True, "mask_scale": "none"},
    ),
    "5-scale, nothing on the image": (FINE, {**PLAIN, "image_encoder": "none"}),
    "unet": (SMALL, UNET),
}
each_variant = pytest.mark.parametrize(("widths", "settings"), VARIANTS.values(), ids=VARIANTS)


@each_variant
def test_a_batch_equals_its_images_alone(widths: Widths, settings: dict[str, object]) -> None:
    head = build(widths, roi=8, **settings)
    sizes = [(96, 128), (130, 70), (96, 128)]
    features = random_features(widths, sizes)
    counts = [5, 3, 0]
    together = head.predict(features, counts)
    for row, n in enumerate(counts):
        alone = head.predict(features.image(row), [n])[0]
        assert together[row].mask_logits.shape == (n, 8, 8)
        assert torch.allclose(together[row].mask_logits, alone.mask_logits, atol=1e-5)
        assert torch.allclose(together[row].scores, alone.scores, atol=1e-5)


@each_variant
def test_every_parameter_learns(widths: Widths, settings: dict[str, object]) -> None:
    head = build(widths, roi=8, **settings).train()
    features = random_features(widths, [(96, 128)])
    output = head(features, [features.boxes[0]], [features.queries[0]])
    loss = output.mask_logits.square().sum() + (output.iou.square().sum() if output.iou is not None else 0)
    loss.backward()
    without = [name for name, p in head.named_parameters() if p.grad is None]
    assert without == []


@each_variant
def test_half_precision_is_the_same_but_for_rounding(widths: Widths, settings: dict[str, object]) -> None:
    head = build(widths, roi=8, **settings)
    features = random_features(widths, [(96, 128), (130, 70)])
    exact = torch.cat([masks.mask_logits for masks in head.predict(features)])
    head.amp = True
    rounded = torch.cat([masks.mask_logits for masks in head.predict(features)])
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.02


@torch.no_grad()
@pytest.mark.parametrize("kind", ["deformable", "swin", "convnext"])
def test_each_encoder_refines(kind: str) -> None:
    features = random_features(SMALL, [(96, 128)])
    boxes, queries = [features.boxes[0]], [features.queries[0]]
    plain = build(SMALL, roi=8, **PLAIN, image_encoder="none", box_encoder="none")
    for place in ("image", "box"):
        other = {"image": "box", "box": "image"}[place]
        settings = {**PLAIN, f"{place}_encoder": kind, f"{other}_encoder": "none", "layer_scale": 1.0}
        head = build(SMALL, roi=8, **settings)
        head.load_state_dict(plain.state_dict(), strict=False)
        same = plain(features, boxes, queries).mask_logits
        assert (head(features, boxes, queries).mask_logits - same).abs().max() > 0.01 * same.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_the_finest_map_alone_is_refined(kind: str) -> None:
    features = random_features(SMALL, [(96, 128)])
    head = build(SMALL, roi=8, hidden=16, image_encoder=kind, image_window=4)
    before = head.predict(features)[0].mask_logits
    features.maps["e32"].zero_()
    assert torch.equal(head.predict(features)[0].mask_logits, before)


@torch.no_grad()
@pytest.mark.parametrize(
    ("widths", "settings", "sees"),
    [
        (SMALL, {}, True),
        (EQUAL, {"neck": False}, True),
        (SMALL, {"neck": False}, True),
        (WIDE_C1, {"neck": False}, True),
        (SMALL, {"neck": False, "c1": False}, False),
        (FINE, {}, False),
    ],
)
def test_who_sees_c1(widths: Widths, settings: dict[str, object], sees: bool) -> None:
    features = random_features(widths, [(96, 128)])
    head = build(widths, roi=8, hidden=16, **settings)
    before = head.predict(features)[0].mask_logits
    features.maps["c1"].zero_()
    assert torch.equal(head.predict(features)[0].mask_logits, before) is not sees
    assert (head.neck is not None) is (sees and "neck" not in settings)


@torch.no_grad()
def test_another_encoder_layer_is_read() -> None:
    names = {**EQUAL.channels, "e8_l2": 16, "e16_l2": 16}
    strides = {**EQUAL.strides, "e8_l2": 8, "e16_l2": 16}
    widths = Widths(names, strides, EQUAL.encoder, query_dim=16, classes=7, encoder_layer=4)
    features = random_features(widths, [(96, 128), (130, 70)])
    own, other = build(widths, roi=8), build(widths, roi=8, encoder_layer=2)
    before = own.predict(features)[0].mask_logits
    assert not torch.equal(other.predict(features)[0].mask_logits, before)
    for name in ("e8", "e16"):
        features.maps[name].copy_(features.maps[f"{name}_l2"])
    assert torch.equal(other.predict(features)[0].mask_logits, own.predict(features)[0].mask_logits)


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
        ({"c1": False}, "neck = false"),
        ({"image_layers": 0}, "image_encoder = 'none'"),
        ({"box_layers": 0}, "box_encoder = 'none'"),
        ({"image_window": 1}, "image_window"),
        ({"query_encoder": ["ffn", "ffn"]}, "twice"),
        ({"box_encoder": "swin", "box_position": "none"}, "box_position"),
        ({"box_encoder": "convnext", "box_norm_first": True}, "box_norm_first"),
        ({"encoder_layer": -1}, "encoder_layer"),
        ({"image_encoder": "swim"}, "deformable, swin, convnext, none"),
    ],
)
def test_contradictions_are_refused_by_name(settings: dict[str, object], words: str) -> None:
    with pytest.raises(Exception, match=words):
        from_table(HeadConfig, settings, "test")


@pytest.mark.parametrize(
    ("widths", "settings", "words"),
    [
        (widths_of({8: 20}, c1=16, query_dim=24), {}, "heads = 8"),
        (widths_of({8: 24, 16: 32}, c1=16, query_dim=24), {}, "e8 24, e16 32"),
        (EQUAL, {"encoder_layer": 3}, "layer 3"),
        (WITHOUT_C1, {}, "no 'c1' map[\\s\\S]*c1 = false and neck = false"),
    ],
)
def test_what_the_features_cannot_give_is_refused(widths: Widths, settings: dict[str, object], words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        build(widths, **settings)


BARE = {"roi": 8, "hidden": 24, "image_encoder": "none", "mask_scoring": False, "query_encoder": []}
"""RoIAlign of C1 plus the encoder map, the box encoder and the product: no mapper, no neck."""


@torch.no_grad()
@pytest.mark.parametrize("path", ["full", "local"])
@pytest.mark.parametrize("aligned", [True, False])
def test_regions_are_torchvisions_of_either_alignment(path: str, aligned: bool) -> None:
    features = random_features(SMALL, [(96, 128)])
    head = build(SMALL, **BARE, box_encoder="none", neck=False, neck_path=path, aligned=aligned)
    total = F.pad(features.c1, (0, 0, 0, 0, 0, 8))
    total = total + F.interpolate(features.maps["e16"], total.shape[2:], mode="bilinear", align_corners=False)
    pixels = boxes_in_pixels(features, [features.boxes[0]])
    expected = roi_align(total, pixels, 8, 0.25, 2, aligned=aligned)
    assert torch.allclose(head.pool(features, [features.boxes[0]]), expected, atol=1e-5)
    other = roi_align(total, pixels, 8, 0.25, 2, aligned=not aligned)
    assert (expected - other).abs().max() > 0.1


@torch.no_grad()
def test_where_the_position_is_added() -> None:
    """On the input it reaches what is read too: as if the regions held it, in a head without one."""
    regions, queries = torch.randn(3, 24, 8, 8), torch.randn(3, 24)
    heads = {
        name: build(SMALL, **BARE, neck=False, **settings)
        for name, settings in {
            "query": {},
            "input": {"box_position_on": "input"},
            "none": {"box_position": "none"},
        }.items()
    }
    position = heads["query"].box_encoder.position  # pyright: ignore[reportOptionalMemberAccess]
    assert isinstance(position, torch.nn.Parameter)
    torch.nn.init.normal_(position)
    heads["input"].load_state_dict(heads["query"].state_dict())
    heads["none"].load_state_dict(heads["query"].state_dict(), strict=False)

    def encoded(name: str, cells: torch.Tensor) -> torch.Tensor:
        encoder = heads[name].box_encoder
        assert encoder is not None
        for layer in (0, 1):
            cells = encoder(layer, cells, queries)
        return cells

    on_input = encoded("input", regions)
    assert torch.equal(on_input, encoded("none", regions + position.T.view(24, 8, 8)))
    assert (on_input - encoded("query", regions)).abs().max() > 0.1


@torch.no_grad()
def test_logits_as_they_are_in_equation_4() -> None:
    features = random_features(SMALL, [(96, 128)])
    scaled, plain = (build(SMALL, **BARE, mask_scale=scale) for scale in ("attention", "none"))
    found = [head.predict(features)[0].mask_logits for head in (scaled, plain)]
    assert torch.allclose(found[0] * 24**0.5, found[1], rtol=1e-5)


@pytest.mark.parametrize("teaches", [False, True])
@pytest.mark.parametrize("given", ["probs", "logits"])
def test_what_mask_scoring_is_given_and_teaches(given: str, teaches: bool) -> None:
    config = from_table(
        HeadConfig, {"hidden": 16, "roi": 8, "mask_scoring_input": given, "mask_scoring_gradient": teaches}, "test"
    )
    torch.manual_seed(0)
    scoring = MaskScoring(config, 7)
    logits, regions = (torch.randn(shape, requires_grad=True) for shape in ((3, 8, 8), (3, 16, 8, 8)))
    iou = scoring(logits, regions)
    seen: list[torch.Tensor] = []
    scoring.convs[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    scoring(logits, regions)
    assert torch.equal(seen[0][:, 0], logits.sigmoid() if given == "probs" else logits)
    grads = torch.autograd.grad(iou.sum(), [logits, regions, scoring.iou.weight], allow_unused=True)
    assert [grad is not None for grad in grads] == [teaches, teaches, True]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"box_position_on": "input", "box_encoder": "swin"}, "box_position_on"),
        ({"box_position_on": "input", "box_position": "none"}, "box_position_on"),
        ({"mask_scale": "none", "mask_head": "segmenter"}, "mask_scale"),
        ({"mask_scoring": False, "mask_scoring_input": "logits"}, "mask_scoring_input"),
        ({"mask_scoring": False, "mask_scoring_gradient": True}, "mask_scoring_gradient"),
    ],
)
def test_choices_of_what_is_not_there_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(PipelineError, match=named):
        from_table(HeadConfig, settings, "test")
