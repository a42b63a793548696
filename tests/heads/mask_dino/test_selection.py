"""The first selection token by token, and the boxes of its masks beside torchvision's."""

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, masks_to_boxes

from pipeline.detectors.positions import Pyramid
from pipeline.heads.mask_dino.readout import Readout
from pipeline.heads.mask_dino.selection import Tokens, TokenSelection, mask_boxes

WIDTH, CLASSES = 16, 3
SHAPES = ((2, 3), (4, 6), (8, 12))


def tokens_of(shapes: tuple[tuple[int, int], ...] = SHAPES, images: int = 2) -> Tokens:
    """Random memory of maps without padding, coarse to fine."""
    count = sum(h * w for h, w in shapes)
    return Tokens(
        memory=torch.randn(images, count, WIDTH),
        positions=torch.randn(1, count, WIDTH),
        pyramid=Pyramid.of_masks([torch.zeros(images, h, w, dtype=torch.bool) for h, w in shapes]),
    )


def readout_of() -> Readout:
    """No weight at zero, so that boxes move."""
    readout = Readout(WIDTH, CLASSES)
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return readout


def test_the_best_tokens_are_chosen_and_say_what_each_would_say_alone() -> None:
    """Brute force over the tokens: place, size of the first box by level, class, box and mask of each."""
    torch.manual_seed(0)
    selection, readout, tokens = TokenSelection(WIDTH), readout_of(), tokens_of()
    pixels = torch.randn(2, WIDTH, 16, 24)
    with torch.no_grad():
        queries, said = selection(tokens, pixels, readout, 10)
        assert said.mask_logits is not None
        for image in range(2):
            scores: list[float] = []
            alone: list[tuple[Tensor, Tensor]] = []
            number = 0
            for level, (h, w) in enumerate(SHAPES):
                for row in range(h):
                    for column in range(w):
                        state = selection.norm(selection.project(tokens.memory[image, number]))
                        side = 0.05 * 2**level  # the coarsest level has the smallest
                        first = torch.tensor([(column + 0.5) / w, (row + 0.5) / h, side, side])
                        box = (readout.box_embed(state) + first.logit()).sigmoid()
                        scores.append(readout.class_embed(state).max().item())
                        alone.append((state, box))
                        number += 1
            best = sorted(range(number), key=lambda token: -scores[token])[:10]
            for query, token in enumerate(best):
                state, box = alone[token]
                torch.testing.assert_close(queries.content[image, query], state)
                torch.testing.assert_close(said.boxes[image, query], box)
                normed = readout.norm(state)
                torch.testing.assert_close(said.class_logits[image, query], readout.class_embed(normed))
                mask = (readout.mask_embed(normed)[:, None, None] * pixels[image]).sum(0)
                torch.testing.assert_close(said.mask_logits[image, query], mask, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(queries.references.sigmoid(), mask_boxes(said.mask_logits).clamp(1e-5, 1 - 1e-5))


def test_queries_have_no_gradient_but_what_is_said_has() -> None:
    torch.manual_seed(0)
    selection, readout = TokenSelection(WIDTH), readout_of()
    queries, said = selection(tokens_of(), torch.randn(2, WIDTH, 16, 24), readout, 10)
    assert not queries.content.requires_grad
    assert not queries.references.requires_grad
    said.boxes.sum().backward()
    weight = selection.project.weight.grad
    assert weight is not None
    assert weight.abs().sum() > 0


def test_where_no_box_can_be_a_token_says_nothing() -> None:
    """The only row of a map one cell high and 200 wide: its ends are too near the edge for a box."""
    torch.manual_seed(0)
    selection, readout = TokenSelection(WIDTH), readout_of()
    nn.init.zeros_(selection.project.bias)
    nn.init.zeros_(selection.norm.bias)
    tokens = tokens_of(((1, 200),), images=1)
    queries, said = selection(tokens, torch.randn(1, WIDTH, 4, 8), readout, 500)
    assert queries.content.shape[1] == 200  # all there are
    lost = (said.boxes[0] == 1).all(-1)
    assert lost.sum() == 4  # centres at 0.0025, 0.0075 and their mirror images
    assert (queries.content[0, lost] == 0).all()
    assert torch.isfinite(queries.references).all()


def test_boxes_of_masks_are_those_of_torchvision_in_shares_of_the_grid() -> None:
    torch.manual_seed(0)
    h, w = 7, 11
    logits = torch.randn(2, 6, h, w) - 1.5
    logits[0, 0] = -1
    logits[0, 1] = -1
    logits[0, 1, 3, 5] = 1  # one cell
    found = mask_boxes(logits)
    for row in range(2):
        for query in range(6):
            mask = logits[row, query] > 0
            if mask.any():
                corners = masks_to_boxes(mask[None])[0] / torch.tensor([w, h, w, h])
                torch.testing.assert_close(found[row, query], box_convert(corners, "xyxy", "cxcywh"))
    assert found[0, 0].tolist() == [1, 1, 0, 0]  # an empty mask
    assert found[0, 1, 2:].tolist() == [0, 0]
