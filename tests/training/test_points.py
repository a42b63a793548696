"""Point sampling on masks that a person can check."""

import numpy as np
import torch

from pipeline.training.points import grid_points, sample_logits, sample_masks, uncertain_points

FIRST = torch.zeros(1, dtype=torch.int64)


def test_logits_at_cell_centres_are_the_cells() -> None:
    logits = torch.randn(2, 8, 8)
    assert torch.allclose(sample_logits(logits, grid_points(2, 8)), logits.flatten(1), atol=1e-6)


def test_mask_at_pixel_centres_is_the_mask() -> None:
    mask = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (6, 9), dtype=np.uint8))
    y, x = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(9) + 0.5, indexing="ij")
    found = sample_masks(mask[None], FIRST, torch.stack([x.flatten(), y.flatten()], dim=-1)[None])
    assert torch.allclose(found[0], mask.flatten().float(), atol=1e-6)


def test_mask_between_pixels_is_bilinear_and_zero_outside() -> None:
    mask = torch.tensor([[1, 0], [1, 0]], dtype=torch.uint8)
    # between the columns; on the first; between it and the outside; outside
    positions = torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.0, 1.0], [-1.6, 1.0]])
    assert torch.allclose(sample_masks(mask[None], FIRST, positions[None])[0], torch.tensor([0.5, 1.0, 0.5, 0.0]))


def test_important_points_lie_where_the_mask_is_undecided() -> None:
    logits = torch.linspace(-10, 10, 16).repeat(3, 16, 1)  # undecided in the middle columns
    generator = torch.Generator().manual_seed(0)
    points = uncertain_points(logits, 400, 3.0, 0.75, generator)
    assert points.shape == (3, 400, 2)
    assert ((points >= 0) & (points <= 1)).all()
    undecided = sample_logits(logits, points).abs()
    assert (undecided[:, :300] < 4.2).all()  # the best quarter of 1200 uniform points is within 2.5 of 10, plus chance
    assert undecided[:, 300:].mean() > 4  # the rest is uniform: 5 on average


def test_points_repeat_with_the_generator() -> None:
    logits = torch.randn(2, 8, 8)
    first, second = (uncertain_points(logits, 50, 3.0, 0.75, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
