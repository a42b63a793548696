"""Where a loss looks, and what mask scoring is to say: each by the settings of the training."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.views import resolve
from pipeline.heads.base import HeadOutput
from pipeline.training.config import TrainConfig
from pipeline.training.criterion import loss_terms
from pipeline.training.targets import Targets

M, R, SIDE, CLASSES = 3, 8, 40, 5


@dataclass(frozen=True)
class Watched(Targets):
    """Targets that remember how many points they were asked at."""

    asked: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])

    def sample(self, points: Tensor) -> Tensor:
        self.asked.append(tuple(points.shape))
        return super().sample(points)


def watched() -> Watched:
    """Boxes of 16 x 16 pixels whose right half is full of an object that goes on as far outside."""
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[8:24, 16:32] = 1
    return Watched(
        boxes=[],
        queries=[],
        labels=torch.tensor([0, 1, 2]),
        detected_labels=torch.tensor([0, 3, 4]),
        areas=torch.full((M,), 256.0),
        box_areas=torch.full((M,), 256.0),
        masks=[torch.from_numpy(mask)] * M,
        frames=torch.tensor([8.0, 8.0, 24.0, 24.0], dtype=torch.float64).expand(M, 4),
        views=[resolve("orig", 1, (SIDE, SIDE))] * M,
    )


def terms_of(logits: Tensor, iou: Tensor | None = None, **settings: Any) -> tuple[dict[str, Tensor], Watched]:
    targets = watched()
    config = TrainConfig(steps=1, **settings)
    return loss_terms(HeadOutput(logits, iou), targets, config, torch.Generator().manual_seed(0)), targets


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_the_loss_is_taken_on_the_grid_that_is_asked_for(grid: int) -> None:
    logits = torch.randn(M, R, R, generator=torch.Generator().manual_seed(0))
    full, targets = terms_of(logits, loss="full", loss_grid=grid)
    assert targets.asked == [(M, (grid * R) ** 2, 2)]
    sampled, targets = terms_of(logits, loss="points", points=0.25, loss_grid=grid)
    assert targets.asked == [(M, (grid * R) ** 2 // 4, 2)]
    if grid != TrainConfig.loss_grid:
        assert full["bce"].item() != terms_of(logits, loss="full")[0]["bce"].item()
        assert sampled["bce"].item() != terms_of(logits, loss="points")[0]["bce"].item()


def test_the_grid_of_the_cells_themselves_by_hand() -> None:
    """On a grid of one point a cell the loss is that of the cells: no logit is between two of them."""
    logits = torch.full((M, R, R), -2.0)
    logits[:, :, R // 2 :] = 3.0
    terms, _ = terms_of(logits, loss="full", loss_grid=1, bce_weight=1.0)
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-3))) / 2
    assert terms["bce"].item() == pytest.approx(expected, rel=1e-5)


def test_a_share_of_points_below_one_point_is_one_point() -> None:
    terms, targets = terms_of(torch.zeros(M, R, R), points=1e-4, loss_grid=1)
    assert targets.asked == [(M, 1, 2)]
    assert torch.isfinite(torch.stack(list(terms.values()))).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # predicted: the right half of the box, 128 pixels, all of them object; 128 more of the object lie outside
        ({}, (0.9 - 0.5) ** 2),
        ({"scoring_loss": "l1"}, 0.9 - 0.5),
        ({"scoring_target": "box"}, (1.0 - 0.9) ** 2),
        ({"scoring_target": "box", "scoring_loss": "l1"}, 1.0 - 0.9),
        # the classes of the detections say 0.9, 0.2 and 0.2
        ({"scoring_class": "detected"}, ((0.9 - 0.5) ** 2 + 2 * (0.5 - 0.2) ** 2) / 3),
    ],
)
def test_what_mask_scoring_is_to_say(settings: dict[str, Any], expected: float) -> None:
    logits = torch.full((M, R, R), -5.0)
    logits[:, :, R // 2 :] = 5.0
    iou = torch.full((M, CLASSES), 0.9)
    iou[:, 3:] = 0.2
    terms, _ = terms_of(logits, iou, **settings)
    assert terms["scoring"].item() == pytest.approx(expected, abs=1e-5)
