"""H-DETR against transformers' Deformable DETR with the same weights, and the rules of its parts."""

from typing import Any, cast

import pytest
import torch
from native_toys import perturbed, toy_config
from torch import Tensor

from pipeline.detectors import hdetr
from pipeline.detectors.hdetr import Decoded, HDetr, select
from pipeline.detectors.native import build_network, padding_mask
from pipeline.detectors.positions import inverse_sigmoid, sine_embedding

pytest.importorskip("transformers")
from scripts.deformable_detr import deformable_detr, logits_and_boxes

TINY_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [32, 64, 128, 128],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
"""A stand-in with the channels of the narrow backbone."""


def toy(seed: int = 0, **changes: Any) -> HDetr:
    return perturbed(cast(HDetr, build_network(toy_config(**changes))), seed)


def pair_of_images(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Random images of these sizes in one batch, zero and True where there is none."""
    h, w = (max(side) for side in zip(*sizes, strict=True))
    padding = padding_mask(torch.tensor(sizes), h, w)
    images = torch.randn(len(sizes), 3, h, w, generator=torch.Generator().manual_seed(3))
    return images.masked_fill(padding[:, None], 0), padding


@torch.inference_mode()
def ours(network: HDetr, images: Tensor, padding: Tensor | None = None) -> Decoded:
    return network(images, padding)


def assert_same(network: HDetr, reference: torch.nn.Module, images: Tensor, padding: Tensor | None) -> Decoded:
    found = ours(network, images, padding)
    ranked = found.proposal_logits[..., 0].sort(1, descending=True).values[:, : network.query_embed.num_embeddings + 1]
    gaps = ranked[:, :-1] - ranked[:, 1:]  # equal: cells that are no proposal, which are one and the same
    assert gaps[gaps > 0].min() > 1e-5, "two proposals so close that rounding may swap them: choose another seed"
    logits, boxes = logits_and_boxes(reference, images, padding)
    assert logits.std() > 0.1  # a comparison of constants would say nothing
    assert boxes.flatten(0, 1).std(0).max() > 0.01
    torch.testing.assert_close(found.logits[-1], logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes[-1], boxes, atol=1e-5, rtol=0)
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("sizes", [[(130, 163)], [(130, 163), (96, 200)], [(64, 64), (100, 90)]])
def test_equals_deformable_detr_with_mixed_selection(seed: int, sizes: list[tuple[int, int]]) -> None:
    network = toy(seed)
    images, padding = pair_of_images(sizes)
    assert_same(network, deformable_detr(network, TINY_RESNET), images, padding if len(sizes) > 1 else None)


def test_equals_deformable_detr_on_the_real_resnet_50() -> None:
    network = toy(backbone="resnet50", width=None, heads=None, encoder_layers=None, decoder_layers=None,
                  feed_forward=None, queries=100, classes="coco-91", columns=None)  # fmt: skip
    reference = deformable_detr(network)
    assert_same(network, reference, *pair_of_images([(170, 224), (192, 130)]))
    assert_same(network, reference, *pair_of_images([(130, 163)]))


@pytest.mark.parametrize(
    "slip",
    ["eps of DINO", "offset of DINO", "temperature of DINO", "order of DINO", "best class as proposal score"],
)
def test_the_comparison_notices_each_slip(slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = toy()
    images, padding = pair_of_images([(130, 163), (96, 200)])
    reference = deformable_detr(network, TINY_RESNET)
    assert_same(network, reference, images, padding)
    if slip == "eps of DINO":
        monkeypatch.setattr(hdetr, "EPS", 1e-3)
        with torch.no_grad():  # proposals as wide as the image, where eps is felt
            cast(Any, network.proposals.bbox_embed.layers[-1]).bias[2] += 15.0
        reference = deformable_detr(network, TINY_RESNET)
    elif slip == "offset of DINO":
        network.encoder.offset = 0.0
    elif slip == "temperature of DINO":
        network.encoder.temperature = 20.0
    elif slip == "order of DINO":
        order = [1, 0, 2, 3]
        monkeypatch.setattr(hdetr, "sine_embedding", lambda r, c, t: sine_embedding(r[..., order], c, t))
    else:
        noted: list[Any] = []
        network.proposals.class_embed.register_forward_hook(lambda _m, _i, logits: noted.append(logits))
        monkeypatch.setattr(hdetr, "select", lambda _, boxes, count: select(noted[-1].amax(-1), boxes, count))
    with pytest.raises(AssertionError, match="not close"):
        assert_same(network, reference, images, padding)


def test_without_padding_a_mask_of_none_is_the_same() -> None:
    network = toy()
    images, _ = pair_of_images([(96, 130), (96, 130)])
    first, second = ours(network, images), ours(network, images, torch.zeros(2, 96, 130, dtype=torch.bool))
    assert torch.equal(first.boxes[-1], second.boxes[-1])
    assert torch.equal(first.logits[-1], second.logits[-1])


def test_padding_in_a_batch_changes_an_image_as_in_the_official_code() -> None:
    """Convolutions see the border of zeros and the first stage ranks other tokens: published AP includes this."""
    network = toy()
    images, padding = pair_of_images([(96, 130), (130, 160)])
    alone = ours(network, images[:1, :, :96, :130])
    together = ours(network, images, padding)
    assert not torch.allclose(alone.logits[-1], together.logits[-1][:1], atol=1e-3)


def test_every_layer_refines_the_box_of_the_one_before() -> None:
    """Look forward twice is a matter of gradients; at inference layer l starts from the boxes of layer l - 1."""
    network = toy()
    found = ours(network, pair_of_images([(96, 130)])[0])
    references = select(found.proposal_logits[..., 0], found.proposal_boxes, 12).sigmoid()
    for states, boxes, head in zip(found.states, found.boxes, network.bbox_embed, strict=True):
        with torch.no_grad():
            expected = (head(states) + inverse_sigmoid(references, 1e-5)).sigmoid()
        torch.testing.assert_close(boxes, expected, atol=1e-7, rtol=0)
        references = boxes


def test_the_first_stage_ranks_by_the_first_logit_best_first() -> None:
    scores = torch.tensor([[0.1, 3.0, -1.0, 2.0]])
    boxes = torch.arange(4.0)[None, :, None].expand(1, 4, 4)
    assert select(scores, boxes, 3)[0, :, 0].tolist() == [1, 3, 0]
    assert select(scores, boxes, 9).shape == (1, 4, 4)
