"""Sine embeddings, geometry of padded pyramids, proposals: against values worked out by hand."""

import math

import pytest
import torch

from pipeline.detectors.positions import (
    Pyramid,
    inverse_sigmoid,
    map_positions,
    shrink_mask,
    sine_embedding,
)

VALID = [(6, 8), (5, 8)]
"""Rows and columns of the finest level that hold the images of a batch of two; the coarser level has half."""


@pytest.fixture
def pyramid() -> Pyramid:
    masks = []
    for scale in (1, 2):
        mask = torch.ones(2, 6 // scale, 10 // scale, dtype=torch.bool)
        for row, (h, w) in enumerate(VALID):
            mask[row, : -(-h // scale), : -(-w // scale)] = False
        masks.append(mask)
    return Pyramid.of_masks(masks)


def test_a_coordinate_becomes_interleaved_sines_and_cosines() -> None:
    found = sine_embedding(torch.tensor([[0.3, 2.0]], dtype=torch.float64), 4, 100.0)
    assert found.shape == (1, 8)
    for half, value in ((found[0, :4], 0.3), (found[0, 4:], 2.0)):
        expected = [math.sin(value), math.cos(value), math.sin(value / 10), math.cos(value / 10)]
        torch.testing.assert_close(half, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("temperature", "offset"), [(10000.0, -0.5), (20.0, 0.0)], ids=["H-DETR", "DINO"])
def test_cells_are_told_by_their_place_in_the_valid_part(temperature: float, offset: float) -> None:
    padding = torch.ones(1, 4, 6, dtype=torch.bool)
    padding[0, :3, :5] = False
    found = map_positions(padding, 8, temperature=temperature, offset=offset).view(4, 6, 16)
    for row in range(3):
        for column in range(5):
            y = (row + 1 + offset) / 3 * 2 * math.pi
            x = (column + 1 + offset) / 5 * 2 * math.pi
            expected = []
            for radians in (y, x):  # y first
                for pair in range(4):
                    angle = radians / temperature ** (2 * pair / 8)
                    expected += [math.sin(angle), math.cos(angle)]
            torch.testing.assert_close(found[row, column], torch.tensor(expected), atol=1e-5, rtol=0)
    assert found.isfinite().all()


def test_map_positions_equal_those_of_deformable_detr() -> None:
    modeling = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    padding = torch.zeros(2, 7, 9, dtype=torch.bool)
    padding[1, 5:], padding[1, :, 4:] = True, True
    reference = modeling.DeformableDetrSinePositionEmbedding(16, normalize=True)
    theirs = reference(torch.Size([2, 32, 7, 9]), "cpu", torch.float32, ~padding).flatten(2).transpose(1, 2)
    ours = map_positions(padding, 16, temperature=10000.0, offset=-0.5)
    valid = ~padding.flatten(1)
    torch.testing.assert_close(ours[valid], theirs[valid], atol=1e-6, rtol=0)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_inverse_sigmoid_is_finite_at_the_ends_and_exact_between(eps: float) -> None:
    x = torch.tensor([-0.1, 0.0, 0.25, 0.5, 1.0, 1.1], dtype=torch.float64)
    end = math.log(eps)
    expected = [end, end, math.log(1 / 3), 0.0, -end, -end]
    torch.testing.assert_close(inverse_sigmoid(x, eps), torch.tensor(expected, dtype=torch.float64))


def test_centres_are_relative_to_the_image_without_padding(pyramid: Pyramid) -> None:
    centres = pyramid.centres()
    assert pyramid.shapes == ((6, 10), (3, 5))
    for row, (h, w) in enumerate(VALID):
        fine = centres[row, :60].view(6, 10, 2)
        torch.testing.assert_close(fine[2, 3], torch.tensor([3.5 / w, 2.5 / h]))
        coarse = centres[row, 60:].view(3, 5, 2)
        torch.testing.assert_close(coarse[2, 3], torch.tensor([3.5 / 4, 2.5 / 3]))


def test_a_reference_is_the_cell_itself_in_its_own_level_and_scaled_in_others(pyramid: Pyramid) -> None:
    references = pyramid.references()
    own = references[:, :60, 0].view(2, 6, 10, 2)
    torch.testing.assert_close(own[:, 2, 3], torch.tensor([[3.5 / 10, 2.5 / 6]] * 2))
    other = references[:, :60, 1].view(2, 6, 10, 2)
    for row, (h, w) in enumerate(VALID):  # 4 of 5 columns and 3 of 3 rows of the coarse level are valid
        torch.testing.assert_close(other[row, 2, 3], torch.tensor([3.5 / w * 4 / 5, 2.5 / h]))


def test_tokens_split_into_maps_row_by_row(pyramid: Pyramid) -> None:
    tokens = torch.arange(2 * 75 * 3.0).view(2, 75, 3)
    fine, coarse = pyramid.split(tokens)
    assert torch.equal(fine[1, :, 2, 3], tokens[1, 2 * 10 + 3])
    assert torch.equal(coarse[0, :, 1, 4], tokens[0, 60 + 1 * 5 + 4])


def test_proposals_grow_with_the_level_and_stay_inside(pyramid: Pyramid) -> None:
    logits, invalid = pyramid.proposals()
    assert torch.equal(logits.isinf().all(-1), invalid)
    assert torch.equal(logits.isinf().any(-1), invalid)
    assert bool((logits[invalid] == torch.inf).all())
    boxes = logits.sigmoid()
    torch.testing.assert_close(boxes[0, 23], torch.tensor([3.5 / 8, 2.5 / 6, 0.05, 0.05]))
    torch.testing.assert_close(boxes[1, 60 + 7], torch.tensor([2.5 / 4, 1.5 / 3, 0.1, 0.1]))
    assert torch.equal(invalid[:, :60].view(2, 6, 10)[:, :, 8:], torch.ones(2, 6, 2, dtype=torch.bool))
    assert torch.equal(invalid[1, 50:60], torch.ones(10, dtype=torch.bool))
    assert not invalid[0, :60].view(6, 10)[:, :8].any()


def test_a_proposal_at_or_beyond_the_rim_is_none() -> None:
    # 0.01 and 0.99 themselves are out: the first and last centre of 50 cells lie exactly there
    _, invalid = Pyramid.of_masks([torch.zeros(1, 3, 50, dtype=torch.bool)]).proposals()
    across = invalid.view(3, 50)[1]
    assert across.tolist() == [True] + [False] * 48 + [True]
    # at the fifth level a proposal is 0.8 wide, which is still inside; at a sixth it would be 1.6
    shapes = [torch.zeros(1, 4, 4, dtype=torch.bool)] * 6
    _, invalid = Pyramid.of_masks(shapes).proposals()
    assert invalid.view(6, 16).any(1).tolist() == [False] * 5 + [True]


def test_masks_shrink_to_the_nearest_pixel_up_and_left() -> None:
    padding = torch.zeros(1, 10, 13, dtype=torch.bool)
    padding[0, 6:], padding[0, :, 9:] = True, True
    small = shrink_mask(padding, (4, 5))
    rows = torch.tensor([math.floor(i * 10 / 4) for i in range(4)])
    columns = torch.tensor([math.floor(i * 13 / 5) for i in range(5)])
    assert torch.equal(small[0], padding[0][rows][:, columns])
