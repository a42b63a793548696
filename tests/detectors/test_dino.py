"""DINO by what its official code computes step by step; the numbers themselves were compared with that code once."""

import math
from typing import Any, cast

import pytest
import torch
from native_toys import perturbed, toy_config
from torch import Tensor

from pipeline.detectors import dino, positions
from pipeline.detectors.dino import Dino
from pipeline.detectors.hdetr import Decoded
from pipeline.detectors.native import build_network, padding_mask
from pipeline.detectors.positions import map_positions


def toy(levels: int = 4, **changes: Any) -> Dino:
    return perturbed(cast(Dino, build_network(toy_config("dino", levels=levels, **changes))))


@pytest.fixture(params=[4, 5])
def network(request: pytest.FixtureRequest) -> Dino:
    return toy(request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 96, 130, generator=torch.Generator().manual_seed(0))


PADDING = padding_mask(torch.tensor([[96, 70], [41, 130]]), 96, 130)


@torch.no_grad()
def run(network: Dino, images: Tensor, padding: Tensor | None = None) -> tuple[Decoded, list[tuple[Tensor, ...]]]:
    """What the network gives, and what each decoder layer was called with: queries, places, references."""
    calls: list[tuple[Tensor, ...]] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: calls.append(args[:3])) for layer in network.layers]
    found = network(images, padding)
    for hook in hooks:
        hook.remove()
    return found, calls


def invert(p: Tensor, eps: float = 1e-3) -> Tensor:
    """Of the sigmoid, as the official code has it."""
    p = p.clamp(0, 1)
    return torch.log(p.clamp(min=eps) / (1 - p).clamp(min=eps))


@torch.no_grad()
def refined(network: Dino, found: Decoded, eps: float = 1e-3) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """References r_0, r_1, ... of each layer, boxes and logits, worked out from the raw states of a "raw" network."""
    best = found.proposal_logits.max(-1).values.topk(12, dim=1).indices
    r = found.proposal_boxes.gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()
    references, boxes, logits = [r], list[Tensor](), list[Tensor]()
    for x in found.states:
        h = network.norm(x)
        logits.append(network.class_embed(h))
        boxes.append((network.bbox_embed(h) + invert(r, eps)).sigmoid())
        r = (network.bbox_embed(x) + invert(r, eps)).sigmoid()
        references.append(r)
    return references, boxes, logits


@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_a_box_comes_from_the_normed_state_and_the_reference_of_its_layer(
    network: Dino, images: Tensor, padding: Tensor | None
) -> None:
    network.query_tap = "raw"
    found, calls = run(network, images, padding)
    references, boxes, logits = refined(network, found)
    for layer in range(3):
        torch.testing.assert_close(found.boxes[layer], boxes[layer], atol=1e-6, rtol=0)
        torch.testing.assert_close(found.logits[layer], logits[layer], atol=1e-5, rtol=0)
        ratios = found.pyramid.valid_ratios.repeat(1, 1, 2)[:, None]
        torch.testing.assert_close(calls[layer][2], references[layer][:, :, None] * ratios, atol=1e-6, rtol=0)
    # the refined box after the last layer, from the raw state, is not what is predicted
    assert (found.boxes[-1] - references[-1]).abs().max() > 1e-3


def test_boxes_at_the_rim_feel_an_eps_of_a_thousandth(network: Dino, images: Tensor) -> None:
    network.query_tap = "raw"
    with torch.no_grad():
        cast(Any, network.proposals.bbox_embed.layers[-1]).bias += 12.0
    found, _ = run(network, images)
    torch.testing.assert_close(found.boxes[-1], refined(network, found)[1][-1], atol=1e-6, rtol=0)
    other = refined(network, found, eps=1e-5)[1][-1]
    assert (found.boxes[-1] - other).abs().max() > 1e-5


def test_queries_are_tapped_after_or_before_the_last_norm(images: Tensor) -> None:
    network = toy()
    normed, _ = run(network, images)
    network.query_tap = "raw"
    raw, _ = run(network, images)
    with torch.no_grad():
        for after, before in zip(normed.states, raw.states, strict=True):
            torch.testing.assert_close(after, network.norm(before))
            assert not torch.allclose(after, before, atol=0.1)
    assert torch.equal(normed.boxes[-1], raw.boxes[-1])
    assert torch.equal(normed.logits[-1], raw.logits[-1])
    assert toy_config("dino").query_tap == "normed"


def test_proposals_are_ranked_by_their_best_class_and_by_heads_of_their_own(network: Dino, images: Tensor) -> None:
    found, calls = run(network, images)
    best = found.proposal_logits.max(-1).values.topk(12, dim=1).indices
    by_first = found.proposal_logits[..., 0].topk(12, dim=1).indices
    assert not torch.equal(best.sort(1).values, by_first.sort(1).values)
    chosen = found.proposal_boxes.gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()
    torch.testing.assert_close(calls[0][2][:, :, 0], chosen)  # without padding all ratios are one
    heads = {name.rsplit(".", 1)[0] for name in network.state_dict() if "class_embed" in name or "bbox_embed" in name}
    shared = {"class_embed", *(f"bbox_embed.layers.{layer}" for layer in range(3))}  # by all decoder layers
    assert heads == shared | {f"proposals.{name}" for name in shared}


def test_content_of_the_queries_is_learned_and_the_same_for_each_image(network: Dino, images: Tensor) -> None:
    _, calls = run(network, images)
    assert torch.equal(calls[0][0], network.tgt_embed.weight.expand(2, -1, -1))


@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_the_place_of_a_query_follows_its_box_in_the_order_yxwh(
    network: Dino, images: Tensor, padding: Tensor | None
) -> None:
    _, calls = run(network, images, padding)
    for _, place, references in calls:
        box = references[1, 3, 0]  # of the finest padded map: its valid ratio is in it
        sines: list[float] = []
        for coordinate in (1, 0, 2, 3):
            for pair in range(16):  # 64 / 2 channels per coordinate
                angle = float(box[coordinate]) * 2 * math.pi / 10000 ** (2 * pair / 32)
                sines += [math.sin(angle), math.cos(angle)]
        with torch.no_grad():
            expected = network.ref_point_head(torch.tensor(sines))
        torch.testing.assert_close(place[1, 3], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(calls[0][1], calls[1][1], atol=1e-3)  # recomputed for every layer
    first, second = network.ref_point_head.layers  # one ReLU between two layers
    sizes = [(layer.in_features, layer.out_features) for layer in (first, second)]
    assert sizes == [(128, 64), (64, 64)]


def test_maps_are_embedded_at_temperature_20_from_the_far_edge_of_each_cell(network: Dino, images: Tensor) -> None:
    maps = network.backbone(images)[5 - len(network.encoder.input_proj) :]
    with torch.no_grad():
        _, positions, pyramid = network.encoder.pyramid(maps, PADDING)
    (h, w), padding = pyramid.shapes[0], pyramid.padding[:, : math.prod(pyramid.shapes[0])]
    expected = map_positions(padding.unflatten(1, (h, w)), 32, temperature=20.0, offset=0.0)
    with torch.no_grad():
        expected = expected + network.encoder.level_embed[0]
    valid = ~padding
    torch.testing.assert_close(positions[:, : h * w][valid], expected[valid])
    last = positions[0, w * (h - 1)]  # the last row ends at 2 pi, whose sine is zero, but for the embedding
    assert abs(float((last - network.encoder.level_embed[0])[0].detach())) < 1e-3


@torch.no_grad()
def test_four_scales_leave_out_stride_4_and_five_take_it(images: Tensor) -> None:
    for levels, shapes in ((4, ((12, 17), (6, 9), (3, 5), (2, 3))), (5, ((24, 33), (12, 17), (6, 9), (3, 5), (2, 3)))):
        network = toy(levels)
        maps = network.backbone(images)
        found, _ = run(network, images)
        assert found.pyramid.shapes == shapes
        assert torch.equal(found.c1, maps[0])
        tokens, _, _ = network.encoder.pyramid(maps[5 - levels :], torch.zeros(2, 96, 130, dtype=torch.bool))
        starts = [0, *torch.tensor([h * w for h, w in shapes]).cumsum(0).tolist()]
        for level, proj in enumerate(network.encoder.input_proj):
            source = maps[min(5 - levels + level, 3)]
            expected = proj(source).flatten(2).transpose(1, 2)
            assert torch.equal(tokens[:, starts[level] : starts[level + 1]], expected)
        kernels = [proj[0].kernel_size for proj in network.encoder.input_proj]  # pyright: ignore[reportIndexIssue]
        assert kernels == [(1, 1)] * (levels - 1) + [(3, 3)]


def test_constants_are_the_official_ones() -> None:
    assert (dino.EPS, dino.MAP_TEMPERATURE, positions.BOX_TEMPERATURE) == (1e-3, 20.0, 10000.0)
