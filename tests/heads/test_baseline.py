"""The parameter-free baseline is a dot product."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from toy import EQUAL, SMALL, random_features

from pipeline.errors import PipelineError
from pipeline.heads.base import Widths, boxes_in_pixels
from pipeline.heads.baseline import Baseline, BaselineConfig
from pipeline.ops.roi_align import roi_align


def test_is_query_times_pooled_feature() -> None:
    features = random_features(SMALL, [(96, 128)])
    head = Baseline(BaselineConfig(roi=8, c1=False), SMALL)
    found = head(features, [features.boxes[0]], [features.queries[0]]).mask_logits
    upsampled = F.interpolate(features.maps["e16"], size=(24, 32), mode="bilinear")
    regions = roi_align([(upsampled, 4)], boxes_in_pixels(features, [features.boxes[0]]), 8)
    assert torch.allclose(found, (regions * features.queries[0][:, :, None, None]).sum(1), atol=1e-5)
    assert not list(head.parameters())


@pytest.mark.parametrize("c1", [False, True])
def test_without_roi_align_every_mask_spans_the_view(c1: bool) -> None:
    features = random_features(EQUAL, [(96, 128), (64, 70)])
    head = Baseline(BaselineConfig(roi_align=False, c1=c1), EQUAL)
    counts = [5, 2]
    for row, masks in enumerate(head.predict(features, counts)):
        n, one = counts[row], features.image(row)
        fused = F.interpolate(one.maps["e8"], size=one.c1.shape[2:], mode="bilinear") + (one.c1 if c1 else 0)
        expected = torch.einsum("chw,nc->nhw", fused[0], one.queries[0, :n])
        assert torch.allclose(masks.mask_logits, expected, atol=1e-5)
        assert torch.equal(masks.boxes, one.boxes[0, :n])
        assert masks.grid_boxes.tolist() == [[0.5, 0.5, 1.0, 1.0]] * n


def test_with_roi_align_every_mask_spans_its_box() -> None:
    features = random_features(EQUAL, [(96, 128)])
    masks = Baseline(BaselineConfig(roi=8), EQUAL).predict(features)[0]
    assert torch.equal(masks.grid_boxes, masks.boxes)


def test_c1_adds_its_channels_only() -> None:
    features = random_features(SMALL, [(96, 128)])
    with_c1 = Baseline(BaselineConfig(roi=8), SMALL)
    without = Baseline(BaselineConfig(roi=8, c1=False), SMALL)
    features.queries[:, :, :16] = 0  # C1 has 16 channels here, of 24: what it adds is multiplied by zero
    boxes, queries = [features.boxes[0]], [features.queries[0]]
    moved = with_c1(features, boxes, queries).mask_logits
    features.maps["c1"].zero_()
    assert torch.allclose(moved, with_c1(features, boxes, queries).mask_logits, atol=1e-5)
    assert torch.allclose(moved, without(features, boxes, queries).mask_logits, atol=1e-5)


@pytest.mark.parametrize(("aligned", "ratio"), [(True, 1), (False, 2), (False, 0)])
def test_its_sampling_is_torchvisions(aligned: bool, ratio: int) -> None:
    features = random_features(EQUAL, [(96, 128)])
    head = Baseline(BaselineConfig(roi=8, aligned=aligned, sampling_ratio=ratio), EQUAL)
    boxes = boxes_in_pixels(features, [features.boxes[0]])
    regions = torchvision.ops.roi_align(head.fused(features), boxes, 8, 0.25, ratio, aligned=aligned)
    expected = torch.einsum("mchw,mc->mhw", regions, features.queries[0])
    assert torch.allclose(head.predict(features)[0].mask_logits, expected, atol=1e-4)
    default = Baseline(BaselineConfig(roi=8), EQUAL).predict(features)[0].mask_logits
    assert (default - expected).abs().max() > 0.1


def test_reads_the_encoder_layer_that_it_is_told() -> None:
    layered = Widths({"c1": 8, "e8": 24, "e8_l2": 24}, {"c1": 4, "e8": 8, "e8_l2": 8}, ("e8",), query_dim=24, classes=3)
    features = random_features(layered, [(64, 64)])
    second = Baseline(BaselineConfig(roi=8, encoder_layer=2), layered)
    assert second.maps_read == ("c1", "e8_l2")
    found = second.predict(features)[0].mask_logits
    features.maps["e8"] = features.maps["e8_l2"]
    assert torch.equal(found, Baseline(BaselineConfig(roi=8), layered).predict(features)[0].mask_logits)
    with pytest.raises(PipelineError, match="no maps of encoder layer 3"):
        Baseline(BaselineConfig(encoder_layer=3), layered)


@pytest.mark.parametrize("settings", [{"sampling_ratio": 1}, {"aligned": False}])
def test_sampling_without_roi_align_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="go with roi_align = true"):
        BaselineConfig(roi_align=False, **settings)


def test_scores_follow_equation_2() -> None:
    features = random_features(SMALL, [(96, 128)])
    masks = Baseline(BaselineConfig(roi=8), SMALL).predict(features)[0]
    probs = masks.mask_logits.sigmoid()
    for n in range(len(probs)):
        inside = probs[n][probs[n] > 0.5]
        quality = inside.mean() if len(inside) else torch.tensor(0.0)
        assert torch.isclose(masks.scores[n], features.scores[0, n] * quality, atol=1e-6)


def test_widths_of_any_detector() -> None:
    narrow = Widths({"c1": 8, "e8": 32}, {"c1": 4, "e8": 8}, ("e8",), query_dim=24, classes=3)
    features = random_features(narrow, [(64, 64)])
    assert Baseline(BaselineConfig(roi=8), narrow).predict(features)[0].mask_logits.shape == (5, 8, 8)


def test_features_without_c1_are_refused() -> None:
    with pytest.raises(PipelineError, match="no 'c1' map"):
        Baseline(BaselineConfig(c1=False), Widths({"e8": 16}, {"e8": 8}, ("e8",), query_dim=16, classes=3))
