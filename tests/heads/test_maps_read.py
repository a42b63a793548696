"""What a head says it reads is all that it needs, and nothing that it can do without."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import random_features

from featcache import CacheSpec, GroundTruth, ImageInfo, LevelSpec
from pipeline.config import shipped
from pipeline.data.panoptic import SegmentClass
from pipeline.data.sources import Batch, maps_asked_for
from pipeline.detectors.base import Features
from pipeline.errors import PipelineError
from pipeline.heads.base import MaskHead, Masks, Widths
from pipeline.heads.registry import build_head
from pipeline.masks import rle
from pipeline.training.ablation import load_ablation
from pipeline.training.config import TrainConfig
from pipeline.training.recipe import Recipe, change, load_recipe

CATEGORIES = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]
SIZES = [(64, 96), (64, 96), (48, 64)]
ENCODER = ("e8", "e16", "e32")
LAYERS = tuple(f"{name}{layer}" for layer in ("", "_l2", "_l6") for name in ENCODER)
STRIDES = {"e4": 4, "e8": 8, "e16": 16, "e32": 32}
SEGMENTS = (SegmentClass(3, True, 0), SegmentClass(7, True, 1), SegmentClass(20, False, -1))
LAYERED = Widths(
    channels={"c1": 16, **dict.fromkeys(LAYERS, 24)},
    strides={"c1": 4, **{name: STRIDES[name.split("_")[0]] for name in LAYERS}},
    encoder=ENCODER,
    query_dim=24,
    classes=2,
    segments=SEGMENTS,
    encoder_layer=4,
)
"""Three layers of the encoder, as the cache of Table 15 has them."""
FINE = replace(
    LAYERED,
    channels={"c1": 16, "e4": 24, "e8": 24, "e16": 24},
    strides={"c1": 4, **STRIDES},
    encoder=("e4", "e8", "e16"),
)
"""Of a 5-scale detector: the finest encoder map has C1's stride."""
SMALL: dict[str, dict[str, Any]] = {
    "baseline": {"roi": 8},
    "mask-frozen-detr": {"hidden": 16, "roi": 8},
    "mask2former": {"hidden": 16, "heads": 4, "feed_forward": 32, "queries": 6, "mask_points": 16},
    "mask-dino": {"hidden": 16, "heads": 4, "feed_forward": 32, "queries": 6, "mask_points": 16, "denoising": 4},
}
"""What makes a head of each family quick; it changes nothing of what is read."""


def rows() -> dict[str, Recipe]:
    """Every shipped head, and rows of tables that read other maps."""
    found = {name: load_recipe(name) for name in shipped("heads")}
    for table in ("table01", "table02", "table15", "upsample"):
        found |= {f"{table}, {row.name}": row.recipe for row in load_ablation(table).rows}
    return found


def small(recipe: Recipe, **settings: Any) -> Recipe:
    settings = SMALL[recipe.family] | settings
    if recipe.head.__dict__.get("guiding_tokens"):
        settings |= {"guiding_tokens": 3, "first_selected": 8}
    return change(recipe, settings, "here")


def settled(name: str, **settings: Any) -> Recipe:
    return small(load_recipe(name), **settings)


ALL, OWN = ENCODER, {f"table15, {layer}": tuple(f"{name}_l{layer}" for name in ENCODER) for layer in (2, 6)}
SHIPPED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(rows(), ("c1", *ALL)),
    **{name: ("c1", *maps) for name, maps in OWN.items()},
    **dict.fromkeys(["baseline", "table01, 1/4 feat.", "table01, RoIAlign, 1/4 feat.", "table02, none"], ("c1", "e8")),
    **dict.fromkeys(["table01, neither", "table01, RoIAlign"], ("e8",)),
    **{f"table02, {kind} {layers}": ("c1", "e8") for kind in ("Swin", "ConvNeXt") for layers in (1, 2, 3)},
}
FROZEN = "mask-frozen-detr"
CASES: dict[str, tuple[Widths, Recipe, tuple[str, ...]]] = {
    **{name: (LAYERED, small(recipe), SHIPPED[name]) for name, recipe in rows().items()},
    "no C1": (LAYERED, settled(FROZEN, c1=False, neck=False), ALL),
    "no C1, no image encoder": (LAYERED, settled(FROZEN, c1=False, neck=False, image_encoder="none"), ("e8",)),
    "no image encoder": (LAYERED, settled(FROZEN, image_encoder="none", encoder_layer=6), ("c1", "e8_l6")),
    "no neck, on the boxes": (LAYERED, settled(FROZEN, neck=False, neck_path="local"), ("c1", *ALL)),
    "no neck, on the map": (LAYERED, settled(FROZEN, neck=False, neck_path="full"), ("c1", *ALL)),
    "five-scale": (FINE, settled(FROZEN), ("e4", "e8", "e16")),
    "five-scale, no image encoder": (FINE, settled(FROZEN, image_encoder="none"), ("e4",)),
    "a baseline of five scales": (FINE, settled("baseline"), ("c1", "e4")),
    "mask2former of two levels": (LAYERED, settled("mask2former", levels=2), ("c1", "e8", "e16")),
    "mask2former of one layer": (LAYERED, settled("mask2former", layers=1), ("c1", "e8", "e32")),
    "mask2former of two layers": (
        LAYERED,
        settled("mask2former", layers=2, encoder_layer=2, start="detector"),
        ("c1", *OWN["table15, 2"]),
    ),
    "mask-dino of one level": (LAYERED, settled("mask-dino", levels=1), ("c1", "e8")),
    "mask-dino from detections": (
        LAYERED,
        settled("mask-dino", start="detector", denoising=0, layers=1, levels=2, encoder_layer=6),
        ("c1", "e8_l6", "e16_l6"),
    ),
    "di-maskdino of one level": (LAYERED, settled("di-maskdino", levels=1), ("c1", "e8")),
}


def batch_of(features: Features) -> Batch:
    """The first three detections of each image are its objects, boxes filled; the panoptic segments are the same."""
    truths: list[GroundTruth] = []
    infos: list[ImageInfo] = []
    for row, (h, w) in enumerate(SIZES):
        boxes, masks = features.boxes[row, :3].numpy() * [w, h, w, h], np.zeros((3, h, w), np.uint8)
        for mask, (x, y, wide, high) in zip(masks, boxes, strict=True):
            mask[round(y - high / 2) : round(y + high / 2), round(x - wide / 2) : round(x + wide / 2)] = 1
        counts = [rle.encode(mask) for mask in masks]
        truths.append(
            GroundTruth(
                ids=np.arange(3) + 10 * row + 1,
                category_ids=np.array([CATEGORIES[label]["id"] for label in features.labels[row, :3]]),
                boxes_xywh=np.array([rle.box_xywh(c, (h, w)) for c in counts], dtype=np.float64),
                areas=masks.sum((1, 2)).astype(float),
                iscrowd=np.zeros(3, bool),
                rles=counts,
            )
        )
        infos.append(ImageInfo(row, h, w, f"{row}.jpg"))
    return Batch(features, [5, 5, 4], truths, infos, ["orig"] * 3, segments_of=lambda image_id: truths[image_id])


def said(head: MaskHead, batch: Batch) -> list[Tensor]:
    """Everything of a prediction, and the terms of a loss with their gradients."""
    torch.manual_seed(0)
    config, generator = TrainConfig(steps=1), torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    for masks in head.eval().predict(batch.features, batch.counts):
        found += _tensors(masks)
    head.train()
    terms = head.loss(batch, head.targets(batch, CATEGORIES, config, generator), config, generator)
    found += terms.values()
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if parameters:
        grads = torch.autograd.grad(torch.stack(list(terms.values())).sum(), parameters, allow_unused=True)
        found += [torch.zeros(0) if grad is None else grad for grad in grads]
    return found


def _tensors(masks: Masks) -> list[Tensor]:
    own = [] if masks.queries is None else [masks.queries.probs, masks.queries.mask_logits]
    return [masks.mask_logits, masks.boxes, masks.scores, masks.labels, masks.grid_boxes, *own]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("widths", "recipe", "maps"), CASES.values(), ids=CASES)
def test_a_head_reads_these_maps_and_needs_each_of_them(widths: Widths, recipe: Recipe, maps: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    head = build_head(recipe.family, recipe.head, widths)
    assert head.maps_read is not None
    assert sorted(head.maps_read) == sorted(maps)
    if recipe.family == "baseline" and not recipe.head.roi_align:  # it is never trained
        head.loss = lambda batch, targets, config, generator: {"none": torch.zeros(1)}  # pyright: ignore[reportAttributeAccessIssue]
    features = random_features(widths, SIZES)
    batch, everything = batch_of(features), features.maps
    whole = said(head, batch)

    def from_maps(maps: dict[str, Tensor]) -> list[Tensor]:
        return said(head, replace(batch, features=replace(features, maps=maps), derived={}))

    alone = {name: everything[name] for name in maps}
    assert same(from_maps(alone), whole)
    for name in maps:
        with pytest.raises(PipelineError, match=f"no map '{name}'"):
            from_maps({other: values for other, values in alone.items() if other != name})
        assert not same(from_maps({**alone, name: 2 * alone[name].flip(3)}), whole), name


def test_what_several_ask_for() -> None:
    names = ("c1", *ENCODER)
    spec = CacheSpec(tuple(LevelSpec(name, 4, 8, (8, 8)) for name in names), detections=1, query_dim=8)
    assert maps_asked_for([("e16",), ("e8", "c1"), ()], spec) == ("c1", "e8", "e16")
    assert maps_asked_for([("e16",), None], spec) == names
    assert maps_asked_for([(), ()], spec) == ()


def test_rows_of_a_batch_have_no_more_padding_than_they_need() -> None:
    features = random_features(LAYERED, SIZES)
    assert features.rows([2]).c1.shape[2:] == (12, 16)
    assert features.rows([0, 2]).c1.shape[2:] == (16, 24)
    assert torch.equal(features.rows([2]).map("e16"), features.image(2).map("e16"))
