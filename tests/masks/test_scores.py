import pytest
import torch

from pipeline.masks.scores import mask_quality


def test_quality_is_the_mean_probability_above_one_half() -> None:
    probs = torch.tensor([[[0.9, 0.6], [0.2, 0.5]], [[0.1, 0.1], [0.1, 0.1]], [[0.99, 0.99], [0.99, 0.99]]])
    assert mask_quality(probs.logit()).tolist() == pytest.approx([0.75, 0.0, 0.99])


def test_no_masks() -> None:
    assert mask_quality(torch.zeros(0, 4, 4)).shape == (0,)


def test_extreme_logits_stay_finite() -> None:
    assert mask_quality(torch.tensor([[[1e4, -1e4]]]).half()).tolist() == [1.0]
