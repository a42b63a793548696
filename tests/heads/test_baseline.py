"""The parameter-free baseline is a dot product."""

import torch
from toy import SMALL, random_features

from pipeline.heads.base import Widths, boxes_in_pixels
from pipeline.heads.baseline import Baseline, BaselineConfig
from pipeline.ops.roi_align import roi_align


def test_is_query_times_pooled_feature() -> None:
    features = random_features(SMALL, [(96, 128)])
    head = Baseline(BaselineConfig(roi=8, c1=False), SMALL)
    found = head(features, [features.boxes[0]], [features.queries[0]]).mask_logits
    regions = roi_align([(features.maps["e16"], 16)], boxes_in_pixels(features, [features.boxes[0]]), 8)
    assert torch.allclose(found, (regions * features.queries[0][:, :, None, None]).sum(1), atol=1e-5)
    assert not list(head.parameters())


def test_c1_adds_its_channels_only() -> None:
    features = random_features(SMALL, [(96, 128)])
    with_c1 = Baseline(BaselineConfig(roi=8), SMALL)
    without = Baseline(BaselineConfig(roi=8, c1=False), SMALL)
    features.queries[:, :, :16] = 0  # C1 has 16 channels here, of 24: what it adds is multiplied by zero
    boxes, queries = [features.boxes[0]], [features.queries[0]]
    moved = with_c1(features, boxes, queries).mask_logits
    # pooled on the grid of C1 instead of the coarser one, so equal only where both are smooth: compare the same grid
    features.maps["c1"].zero_()
    assert torch.allclose(moved, with_c1(features, boxes, queries).mask_logits, atol=1e-5)
    assert moved.shape == without(features, boxes, queries).mask_logits.shape


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
