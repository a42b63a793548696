from pathlib import Path
from typing import Any

import torch
from perfect import perfect_cache
from tiny import Tiny

from pipeline.data.sources import Cached
from pipeline.heads.base import Masks
from pipeline.masks import rle
from pipeline.masks.image_results import finished, image_results


def test_masks_on_a_grid_over_the_whole_image_are_pasted_there(tiny: Tiny, tmp_path: Path) -> None:
    source = Cached(perfect_cache(tiny, tmp_path / "perfect"))
    batch = source.batch([(0, "orig")])
    n, info = batch.counts[0], batch.infos[0]
    left_half = torch.full((n, 8, 8), -5.0)
    left_half[:, :, :4] = 5.0
    features = batch.features
    detections = {"boxes": features.boxes[0], "scores": features.scores[0], "labels": features.labels[0]}
    frames = torch.tensor([[0.5, 0.5, 1.0, 1.0]]).expand(n, 4)
    found = image_results(batch, Masks(left_half, **detections, frames=frames), source.categories)
    image_hw = (info.height, info.width)
    for result in found.masks:
        mask = rle.decode(result["segmentation"]["counts"].encode(), image_hw)
        assert mask[:, : info.width // 2 - 1].all()
        assert not mask[:, info.width // 2 + 1 :].any()


def test_quality_in_the_image_ranks_the_masks() -> None:
    """The better class has the worse mask: after it is pasted it comes second, box and label with it."""
    logits = torch.full((2, 4, 4), 0.2)
    logits[1] = 4.0
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
    arguments: dict[str, Any] = {"boxes": boxes, "scores": torch.tensor([0.9, 0.7]), "labels": torch.tensor([3, 1])}
    masks, counts = finished(Masks(logits, **arguments, own_boxes=True, judge_pasted=True), (20, 40))
    torch.testing.assert_close(masks.scores, torch.tensor([0.7 * 0.98201, 0.9 * 0.54983]), atol=1e-4, rtol=0)
    assert masks.labels.tolist() == [1, 3]
    assert torch.equal(masks.boxes, boxes.flip(0))
    assert torch.equal(masks.mask_logits, logits.flip(0))
    assert (masks.own_boxes, masks.judge_pasted) == (True, False)
    assert [rle.box_xywh(one, (20, 40)) for one in counts] == [[20, 0, 20, 20], [0, 0, 20, 20]]
    as_they_are, _ = finished(Masks(logits, **arguments), (20, 40))
    assert as_they_are.labels.tolist() == [3, 1]
