"""The shared layers by their rules; their numbers are those of other implementations in test_hdetr.py."""

import pytest
import torch
from native_toys import perturbed
from pretend_gpu import GPU, OnGpu, pretended
from torch import Tensor

from pipeline.detectors.deformable import DecoderLayer, DeformableAttention, FeatureEncoder, ProposalHead
from pipeline.detectors.positions import Pyramid

SHAPES = [(6, 8), (3, 4)]
CHANNELS = (8, 16, 24)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pyramid_of(padded_columns: int = 0) -> Pyramid:
    masks = [torch.zeros(1, h, w, dtype=torch.bool) for h, w in SHAPES]
    if padded_columns:
        for scale, mask in enumerate(masks, start=1):
            mask[:, :, -padded_columns // scale :] = True
    return Pyramid.of_masks(masks)


def encoder(offset: float = 0.0) -> FeatureEncoder:
    sizes = {"heads": 4, "points": 4, "feed_forward": 48}
    return perturbed(FeatureEncoder(CHANNELS, width=32, levels=4, layers=2, temperature=20, offset=offset, **sizes))


def maps(columns: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, c, 16 >> i, columns >> i, generator=generator) for i, c in enumerate(CHANNELS)]


@torch.no_grad()
def test_boxes_scale_offsets_by_half_their_size_over_the_points() -> None:
    layer = perturbed(DeformableAttention(16, 2, heads=2, points=4))
    queries, tokens = torch.randn(1, 3, 16), torch.randn(1, 60, 16)
    # offsets in cells around a point equal offsets in quarters of half a box of the right size, if points have one size
    layer.levels = 1
    layer.sampling_offsets, layer.attention_weights = torch.nn.Linear(16, 2 * 4 * 2), torch.nn.Linear(16, 2 * 4)
    tokens, shapes = tokens[:, :48], SHAPES[:1]
    points = torch.rand(1, 3, 1, 2)
    size = torch.tensor([8 / 8, 8 / 6]).expand(1, 3, 1, 2)  # off / 4 * wh / 2 = off / (w, h)
    around = layer(queries, tokens, points, shapes)
    within = layer(queries, tokens, torch.cat([points, size], -1), shapes)
    torch.testing.assert_close(around, within)
    assert not torch.allclose(around, layer(queries, tokens, torch.cat([points, size / 2], -1), shapes), atol=1e-3)


@torch.no_grad()
def test_padded_tokens_read_as_zero() -> None:
    layer = perturbed(DeformableAttention(16, 2, heads=2, points=4))
    queries, tokens, references = torch.randn(1, 5, 16), torch.randn(1, 60, 16), torch.rand(1, 5, 2, 2)
    padding = torch.zeros(1, 60, dtype=torch.bool)
    padding[:, 30:] = True
    first = layer(queries, tokens, references, SHAPES, padding)
    changed = tokens.masked_fill(padding[..., None], 1e3)
    assert torch.equal(first, layer(queries, changed, references, SHAPES, padding))
    assert not torch.allclose(first, layer(queries, tokens, references, SHAPES))


@torch.no_grad()
def test_the_coarsest_level_comes_from_the_raw_last_map() -> None:
    model, inputs = encoder(), maps()
    padding = torch.zeros(1, 128, 128, dtype=torch.bool)
    tokens, _, pyramid = model.pyramid(inputs, padding)
    assert pyramid.shapes == ((16, 16), (8, 8), (4, 4), (2, 2))
    conv, norm = model.input_proj[3]  # pyright: ignore[reportGeneralTypeIssues]
    assert (conv.kernel_size, conv.stride, conv.in_channels, norm.num_groups) == ((3, 3), (2, 2), 24, 32)
    expected = norm(conv(inputs[-1])).flatten(2).transpose(1, 2)
    assert torch.equal(tokens[:, -4:], expected)
    assert [proj[0].kernel_size for proj in model.input_proj] == [(1, 1)] * 3 + [(3, 3)]  # pyright: ignore[reportIndexIssue]


@torch.no_grad()
def test_without_padding_a_mask_changes_nothing_and_with_it_the_numbers_are_others() -> None:
    model = encoder()
    whole = torch.zeros(1, 128, 128, dtype=torch.bool)
    tokens, positions, pyramid = model.pyramid(maps(), whole)
    memory = model(tokens, positions, pyramid)[-1]
    padded = whole.clone()
    padded[:, :, 96:] = True
    _, other_positions, other = model.pyramid(maps(), padded)
    assert torch.equal(other.valid_wh[0, :, 0], torch.tensor([12.0, 6.0, 3.0, 2.0]))
    again = model(tokens, other_positions, other)[-1]
    assert memory.isfinite().all()
    assert again.isfinite().all()
    assert not torch.allclose(memory[:, 0], again[:, 0], atol=1e-3)


@torch.no_grad()
def test_levels_differ_by_their_embedding_only() -> None:
    model = encoder(offset=-0.5)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    alike = [torch.zeros(1, c, 8, 8) for c in CHANNELS]
    _, positions, _ = model.pyramid(alike, masks)
    plain = positions[:, :192].view(1, 3, 64, 32) - model.level_embed[:3, None]
    torch.testing.assert_close(plain[:, 0], plain[:, 1])
    torch.testing.assert_close(plain[:, 0], plain[:, 2])


@torch.no_grad()
@pytest.mark.parametrize("padded_columns", [0, 2])
def test_no_proposal_comes_from_padding_or_the_rim_whatever_is_there(padded_columns: int) -> None:
    head = perturbed(ProposalHead(16, 5))
    pyramid = pyramid_of(padded_columns)
    anchors, invalid = pyramid.proposals()
    memory = torch.randn(1, 60, 16)
    logits, boxes = head(memory, pyramid)
    changed = memory.masked_fill(invalid[..., None], 1e3)
    again = head(changed, pyramid)
    assert torch.equal(logits, again[0])
    assert torch.equal(boxes.isinf().all(-1), invalid)
    if padded_columns:
        zero = head.class_embed(head.enc_output_norm(head.enc_output(torch.zeros(16))))
        torch.testing.assert_close(logits[invalid], zero.expand_as(logits[invalid]))
        assert invalid.any()
    delta = head.bbox_embed(head.enc_output_norm(head.enc_output(memory)))
    torch.testing.assert_close((boxes - anchors)[~invalid], delta[~invalid], atol=1e-5, rtol=0)


@torch.no_grad()
def test_norms_of_the_decoder_are_numbered_as_in_the_official_files() -> None:
    """2 follows the self-attention, 1 the cross-attention, 3 the feed-forward."""
    layer = perturbed(DecoderLayer(16, 2, heads=2, points=4, feed_forward=24))
    pyramid = pyramid_of()
    queries, place, memory = torch.randn(1, 4, 16), torch.randn(1, 4, 16), torch.randn(1, 60, 16)
    references = torch.rand(1, 4, 2, 4)
    after: dict[str, Tensor] = {}
    for name in ("norm1", "norm2", "norm3"):
        getattr(layer, name).register_forward_hook(lambda _m, _i, output, name=name: after.update({name: output}))
    found = layer(queries, place, references, memory, pyramid)
    asking = queries + place
    attended = layer.norm2(queries + layer.self_attn(asking, asking, queries)[0])
    torch.testing.assert_close(after["norm2"], attended)
    crossed = layer.cross_attn(attended + place, memory, references, pyramid.shapes, pyramid.padding)
    torch.testing.assert_close(after["norm1"], layer.norm1(attended + crossed))
    assert torch.equal(found, after["norm3"])


@torch.no_grad()
def test_a_layer_does_not_wait_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are sent there and waited for let it run dry before the next layer is asked for."""
    layer = perturbed(DeformableAttention(16, 2, heads=2, points=4))
    given = torch.randn(1, 5, 16), torch.randn(1, 60, 16), torch.rand(1, 5, 2, 2)
    expected = layer(*given, SHAPES)
    with pretended(monkeypatch), monkeypatch.context() as patch:
        layer, given = layer.to(GPU), tuple(one.to(GPU) for one in given)
        for name in ("new_tensor", "cpu", "item", "tolist"):
            patch.setattr(OnGpu, name, lambda *_, name=name: pytest.fail(f"{name} waits"), raising=False)
        found = layer(*given, SHAPES)
    torch.testing.assert_close(found.as_subclass(Tensor), expected)
