"""De-Imbalance and Balance-Aware Tokens Optimization, each written out a second time."""

import math

import torch
import torch.nn.functional as F
from test_selection import SHAPES, WIDTH, readout_of, tokens_of
from torch import Tensor, nn

from pipeline.heads.mask_dino.guiding import TokenGuidance
from pipeline.heads.mask_dino.interaction import TokenInteraction
from pipeline.heads.mask_dino.selection import Queries

HEADS = 4


def attend(attention: nn.MultiheadAttention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`nn.MultiheadAttention` of one image head by head: "q c", "k c", "k c" -> "q c"."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, weight, bias) for x, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
    )
    each = [
        ((a @ b.T) / math.sqrt(a.shape[1])).softmax(-1) @ c
        for a, b, c in zip(q.chunk(HEADS, 1), k.chunk(HEADS, 1), v.chunk(HEADS, 1), strict=True)
    ]
    return attention.out_proj(torch.cat(each, dim=1))


def sine(boxes: Tensor) -> Tensor:
    """DAB-DETR's embedding of boxes "q 4": y, x, w, h one after the other, sine and cosine in turn. "q 2*WIDTH" """
    channels = WIDTH // 2
    parts: list[Tensor] = []
    for coordinate in (1, 0, 2, 3):
        for index in range(channels):
            angle = 2 * math.pi * boxes[:, coordinate] / 10_000 ** (2 * (index // 2) / channels)
            parts.append(angle.sin() if index % 2 == 0 else angle.cos())
    return torch.stack(parts, dim=1)


def interaction_of(residual: bool = False) -> TokenInteraction:
    module = TokenInteraction(WIDTH, heads=HEADS, feed_forward=24, layers=2, residual=residual)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def queries_of(count: int) -> Queries:
    return Queries(torch.randn(2, count, WIDTH), torch.randn(2, count, 4))


def test_tokens_interact_and_the_best_are_kept() -> None:
    torch.manual_seed(0)
    module, readout, queries = interaction_of(), readout_of(), queries_of(9)
    with torch.no_grad():
        kept, said = module(queries, tokens_of(), readout, 4)
        assert len(said) == 2
        for image in range(2):
            x, logits = queries.content[image], queries.references[image]
            for number, layer in enumerate(module.layers):
                asking = x + module.place(sine(logits.sigmoid()))
                x = layer.norm1(x + attend(layer.self_attn, asking, asking, x))  # pyright: ignore
                x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))  # pyright: ignore
                logits = module.box_embed(x) + logits
                normed = module.norm(x)
                torch.testing.assert_close(said[number].boxes[image], (module.box_embed(normed) + logits).sigmoid())
                twice = readout.class_embed(readout.norm(normed))
                torch.testing.assert_close(said[number].class_logits[image], twice)
                assert said[number].mask_logits is None
            best = readout.class_embed(module.norm(x)).amax(-1).argsort(descending=True)[:4]
            torch.testing.assert_close(kept.content[image], x[best])
            torch.testing.assert_close(kept.references[image], logits[best], atol=1e-4, rtol=1e-4)


def test_what_is_kept_teaches_the_layers() -> None:
    """Unlike that of the first selection: the residual of the "residual double-selection"."""
    torch.manual_seed(0)
    module = interaction_of()
    kept, _ = module(queries_of(9), tokens_of(), readout_of(), 4)
    kept.references.sum().backward()
    assert module.box_embed.layers[-1].weight.grad is not None
    assert module.layers[0].linear1.weight.grad is not None  # pyright: ignore


def test_the_residual_asks_all_tokens() -> None:
    """Eq. 4: the same selection, then what attention finds in the tokens is added."""
    torch.manual_seed(0)
    module, readout, queries, tokens = interaction_of(residual=True), readout_of(), queries_of(9), tokens_of()
    assert module.residual is not None
    with torch.no_grad():
        kept, _ = module(queries, tokens, readout, 4)
        residual, module.residual = module.residual, None
        plain, _ = module(queries, tokens, readout, 4)
        assert torch.equal(kept.references, plain.references)
        for image in range(2):
            memory, content = tokens.memory[image], plain.content[image]
            asking = content + module.place(sine(plain.references[image].sigmoid()))
            found = attend(residual.attention, asking, memory + tokens.positions[0], memory)
            torch.testing.assert_close(kept.content[image], residual.norm(content + found), atol=1e-5, rtol=1e-5)


def test_guiding_queries_change_tokens_and_mask_features() -> None:
    torch.manual_seed(0)
    module, tokens = TokenGuidance(WIDTH, HEADS, 24), tokens_of()
    pixels = torch.randn(2, WIDTH, 16, 24)
    mask_guides, box_guides = torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        memory, guided = module(tokens, pixels, mask_guides, box_guides)
        for image in range(2):
            x = tokens.memory[image]
            keys = mask_guides[image] + box_guides[image]
            y = module.norm1(x + attend(module.attention, x + tokens.positions[0], keys, mask_guides[image]))
            y = module.norm2(y + module.linear2(module.linear1(y).relu()))
            torch.testing.assert_close(memory[image], y, atol=1e-5, rtol=1e-5)
            h, w = SHAPES[-1]
            finest = y[-h * w :].T.reshape(1, WIDTH, h, w)
            joined = pixels[image] + F.interpolate(finest, (16, 24), mode="bilinear")
            torch.testing.assert_close(guided[image], module.smooth(joined)[0], atol=1e-5, rtol=1e-5)
    assert [type(part) for part in module.smooth] == [nn.Conv2d, nn.GroupNorm, nn.ReLU]
    assert module.smooth[0].bias is None
