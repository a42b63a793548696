"""Denoising queries: noise within its bounds, one row for each object and group, and nobody looks at the answer."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.views import resolve
from pipeline.heads.mask_dino.denoising import Denoising, denoising_queries
from pipeline.training.view_objects import ViewObjects

CLASSES, WIDTH = 5, 8


def objects_of(count: int, seed: int) -> ViewObjects:
    generator = torch.Generator().manual_seed(seed)
    return ViewObjects(
        labels=torch.randint(CLASSES, (count,), generator=generator),
        boxes=torch.rand(count, 4, generator=generator) * 0.2 + 0.3,  # no noise reaches the edge
        masks=torch.ones(count, 4, 4, dtype=torch.uint8),
        view=resolve("orig", 1, (4, 4)),
    )


def queries_of(counts: list[int], *, queries: int = 20, noise: float = 0.4, seed: int = 0) -> Denoising | None:
    return denoising_queries(
        [objects_of(count, row) for row, count in enumerate(counts)],
        embedding(),
        queries=queries,
        noise=noise,
        generator=torch.Generator().manual_seed(seed),
    )


def embedding() -> nn.Embedding:
    """Class c is a row of c + 1."""
    table = nn.Embedding(CLASSES, WIDTH)
    with torch.no_grad():
        table.weight.copy_(torch.arange(1, CLASSES + 1)[:, None].expand(-1, WIDTH))
    return table


def labels_in(content: Tensor) -> Tensor:
    """Of rows of `embedding`; -1 for filling."""
    return content[..., 0].long() - 1


def test_without_noise_every_group_holds_every_object() -> None:
    found = queries_of([3, 0, 2], queries=11, noise=0.0)
    assert found is not None
    assert found.groups == 3
    assert found.content.shape == (3, 9, WIDTH)
    for row, count in enumerate([3, 0, 2]):
        own = objects_of(count, row)
        labels, boxes = labels_in(found.content[row]).view(3, 3), found.references[row].sigmoid().view(3, 3, 4)
        assert labels[:, :count].tolist() == [own.labels.tolist()] * 3
        torch.testing.assert_close(boxes[:, :count], own.boxes.expand(3, -1, -1))
        assert (labels[:, count:] == -1).all()  # filling: no content, and a box in the middle
        assert (boxes[:, count:] == 0.5).all()
        pairs = found.pairs[row]
        assert pairs.tolist() == [[group * 3 + k, k] for group in range(3) for k in range(count)]


def test_noise_keeps_its_bounds_and_fills_them() -> None:
    found = queries_of([40, 25], queries=4000)
    assert found is not None
    changed = 0
    for row, count in enumerate([40, 25]):
        own, (place, which) = objects_of(count, row), found.pairs[row].unbind(1)
        boxes, truth = found.references[row, place].sigmoid(), own.boxes[which]
        moved = (boxes[:, :2] - truth[:, :2]) / (truth[:, 2:] / 2)
        grown = boxes[:, 2:] / truth[:, 2:] - 1
        for share in (moved, grown):
            assert share.abs().max() <= 0.4 + 1e-4
            assert share.amax() > 0.38
            assert share.amin() < -0.38
            assert abs(share.mean().item()) < 0.02
        changed += (labels_in(found.content[row, place]) != own.labels[which]).sum().item()
    drawn = 100 * (40 + 25)
    # a fifth are drawn anew, and one in five of those is what it was; four standard deviations
    assert changed / drawn == pytest.approx(0.2 * 0.8, abs=4 * (0.16 * 0.84 / drawn) ** 0.5)


def test_boxes_end_at_the_view() -> None:
    own = ViewObjects(
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([[0.5, 0.01, 1.0, 0.02]]),
        torch.ones(1, 4, 4, dtype=torch.uint8),
        resolve("orig", 1, (4, 4)),
    )
    found = denoising_queries([own], embedding(), queries=200, noise=1.0, generator=torch.Generator().manual_seed(0))
    assert found is not None
    assert torch.isfinite(found.references).all()
    assert found.references.sigmoid().amax() <= 1
    assert (found.references[..., 2].sigmoid() > 1 - 2e-5).any()  # cut at the whole width


def test_who_sees_whom() -> None:
    """Self-attention with the mask: another group, or the filling of it, changes nothing; ground truth stays hidden."""
    found = queries_of([3, 2], queries=9)
    assert found is not None
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    tokens = torch.randn(2, 9 + 4, WIDTH)
    mask = found.attention_mask(4)
    assert mask.shape == (13, 13)

    def attend(changed: slice) -> Tensor:
        """Which rows notice that these became other ones."""
        other = tokens.clone()
        other[:, changed] += 1
        results = [attention(x, x, x, attn_mask=mask, need_weights=False)[0] for x in (tokens, other)]
        return (results[0] - results[1]).abs().amax(dim=(0, 2)) > 1e-6

    for group in range(3):
        own = slice(3 * group, 3 * group + 3)
        notice = attend(own)
        assert notice[own].all()
        assert notice.sum() == 3
    assert attend(slice(9, 13)).all()


def test_none_where_there_is_nothing_or_too_much() -> None:
    assert queries_of([0, 0]) is None
    assert queries_of([21, 1]) is None
    assert queries_of([3], queries=0) is None
    found = queries_of([20, 1])
    assert found is not None
    assert found.groups == 1


def test_the_seed_tells_the_noise_and_the_embedding_learns() -> None:
    first, again, other = queries_of([3, 1]), queries_of([3, 1]), queries_of([3, 1], seed=1)
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first.references, again.references)
    assert not torch.equal(first.references, other.references)
    table = embedding()
    found = denoising_queries([objects_of(3, 0)], table, queries=20, noise=0.0, generator=torch.Generator())
    assert found is not None
    found.content.sum().backward()
    assert table.weight.grad is not None
    shown = set(objects_of(3, 0).labels.tolist())
    assert {row for row in range(CLASSES) if table.weight.grad[row].any()} == shown
