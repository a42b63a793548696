"""Boxes of images of many sizes, whole, mirrored and cut, say together what each says alone, and on a GPU there."""

import pytest
import torch
from pretend_gpu import GPU, OnGpu, pretended
from torch import Tensor

from pipeline.data.views import View
from pipeline.training import box_truth
from pipeline.training.box_truth import BoxTruth

CPU = torch.device("cpu")


def many() -> tuple[list[Tensor], Tensor, list[View], Tensor]:
    """Masks, frames and views of nine boxes, two of them on one object and some beyond their image; and points."""
    generator = torch.Generator().manual_seed(0)
    sides = [(40, 60), (7, 9), (1, 30), (25, 25)] * 2
    masks = [torch.randint(0, 2, hw, dtype=torch.uint8, generator=generator) for hw in sides]
    masks.append(masks[0])
    corner = torch.rand(9, 2, generator=generator, dtype=torch.float64) * 20 - 10
    frames = torch.cat([corner, corner + 30 * torch.rand(9, 2, generator=generator, dtype=torch.float64)], dim=1)
    views: list[View] = []
    for number, mask in enumerate(masks):
        h, w = mask.shape
        window = (0.0, 0.0, float(w), float(h)) if number % 3 else (0.2 * w, 0.0, 0.7 * w, 0.6 * h)
        views.append(View((h, w), window, mirrored=number % 2 == 1))
    return masks, frames, views, torch.rand(9, 50, 2, generator=generator)


@pytest.mark.parametrize("at_once", [1, 120, 10_000])
def test_together_as_alone(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(box_truth, "POINTS_AT_ONCE", at_once)
    masks, frames, views, points = many()
    together = BoxTruth.of(masks, frames, views, CPU).sample(points)
    assert together.dtype == torch.float32
    assert 0.1 < together.mean() < 0.5
    for box, (mask, view) in enumerate(zip(masks, views, strict=True)):
        one = slice(box, box + 1)
        alone = BoxTruth.of([mask], frames[one], [view], CPU).sample(points[one])
        assert torch.equal(together[one], alone)
    assert BoxTruth.of(masks, frames, views, CPU).pixels.numel() == sum(mask.numel() for mask in masks[:8])


def test_on_a_gpu_nothing_goes_back_to_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, frames, views, points = many()
    expected = BoxTruth.of(masks, frames, views, CPU).sample(points)
    with pretended(monkeypatch), monkeypatch.context() as patch:
        patch.setattr(OnGpu, "cpu", lambda _: pytest.fail("it waits for the GPU"), raising=False)
        found = BoxTruth.of(masks, frames, views, GPU).sample(points.to(GPU))
    assert isinstance(found, OnGpu)
    assert torch.equal(found.as_subclass(Tensor), expected)
