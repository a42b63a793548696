"""Neck and mapper on the boxes' grids against neck and mapper on the whole map: one function, forward and backward."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import EQUAL, FINE, SMALL, random_features
from toy import widths as widths_of

from featcache import Moments
from pipeline.config import from_table
from pipeline.detectors.base import Features
from pipeline.heads.base import Widths
from pipeline.heads.mask_frozen_detr import HeadConfig, MaskFrozenDetr
from pipeline.heads.mask_frozen_detr.neck import ChannelMap, cheaper_on_boxes
from pipeline.ops.roi_align import roi_align

WIDE_C1 = widths_of({16: 24, 32: 24}, c1=40, query_dim=24, classes=7)
CASES: dict[str, tuple[Widths, dict[str, object]]] = {
    "neck and mapper": (SMALL, {"hidden": 16}),
    "neck alone": (SMALL, {"hidden": 24}),
    "mapper alone": (SMALL, {"hidden": 16, "neck": False}),
    "mapper alone, C1 wider": (WIDE_C1, {"hidden": 16, "neck": False}),
    "neither": (EQUAL, {"hidden": 16, "neck": False}),
    "neither, C1 wider": (WIDE_C1, {"hidden": 24, "neck": False}),
    "direct": (SMALL, {"hidden": 16, "upsample": "direct"}),
    "adaptive sampling": (SMALL, {"hidden": 16, "sampling_ratio": 0}),
    "older alignment": (SMALL, {"hidden": 16, "aligned": False}),
    "nothing on the image": (SMALL, {"hidden": 16, "image_encoder": "none"}),
    "encoder map alone": (SMALL, {"hidden": 16, "c1": False, "neck": False}),
    "encoder map of C1's stride": (FINE, {"hidden": 16}),
    "encoder map alone, older alignment": (SMALL, {"hidden": 16, "c1": False, "neck": False, "aligned": False}),
}
each_case = pytest.mark.parametrize(("widths", "settings"), CASES.values(), ids=CASES)
SIZES = [(96, 128), (130, 70), (96, 128)]


def build(widths: Widths, **settings: object) -> MaskFrozenDetr:
    """The same parameters whatever the path; those of the neck's GroupNorm are not 1 and 0."""
    torch.manual_seed(0)
    settings = {"roi": 8, "image_layers": 1, "box_layers": 1, "mask_scoring": False, **settings}
    head = MaskFrozenDetr(from_table(HeadConfig, settings, "test"), widths)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head


def across_the_border(features: Features, *, of_c1: float = 3.0) -> Features:
    """Some boxes inside, some that reach far over an edge or lie outside; C1 is not centred."""
    boxes = features.boxes.clone()
    boxes[:, 0, :2], boxes[:, 1, :2], boxes[:, 2] = 0.02, 1.05, torch.tensor([1.4, 0.5, 0.2, 0.2])
    c1 = features.maps["c1"]
    offset = of_c1 * torch.linspace(-1, 1, c1.shape[1])[:, None, None]
    shifted = torch.where(c1 == 0, 0, c1 + offset)  # zero stays padding
    return replace(features, maps={**features.maps, "c1": shifted}, boxes=boxes)


def with_moments(features: Features) -> Features:
    """As a cache with moments gives them."""
    images = [features.image(row).c1[0] for row in range(len(features.boxes))]
    return replace(features, moments={"c1": Moments.stack([Moments.of(one) for one in images])})


def converted(features: Features, dtype: torch.dtype) -> Features:
    maps = {name: one.to(dtype) for name, one in features.maps.items()}
    return replace(features, maps=maps, queries=features.queries.to(dtype))


def regions(head: MaskFrozenDetr, features: Features, path: str) -> Tensor:
    """Image by image where sizes differ, as the head pools."""
    head.config = replace(head.config, neck_path=path)  # pyright: ignore[reportArgumentType]
    boxes, queries = list(features.boxes), list(features.queries)
    return head(features, boxes, queries).mask_logits


@each_case
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
def test_local_equals_full(
    widths: Widths, settings: dict[str, object], stored: bool, dtype: torch.dtype, tolerance: float
) -> None:
    head = build(widths, **settings).to(dtype)
    features = converted(across_the_border(random_features(widths, SIZES)), dtype)
    features = with_moments(features) if stored else features
    results: list[list[Tensor]] = []
    for path in ("full", "local"):
        logits = regions(head, features, path)
        names, parameters = zip(*head.named_parameters(), strict=True)
        weights = torch.linspace(-1, 1, logits.numel(), dtype=dtype).view_as(logits)
        grads = torch.autograd.grad((logits * weights).sum(), parameters, materialize_grads=True)
        results.append([logits.detach(), *grads])
    scale = max(grad.norm().item() for grad in results[0][1:])
    for name, full, local in zip(("logits", *names), *results, strict=True):
        # a gradient that is zero but for rounding (of a bias before a normalisation) has no size of its own
        size = max(full.norm().item(), 0.0 if name == "logits" else 1e-3 * scale)
        assert (local - full).norm().item() <= tolerance * size, name


def test_a_neck_in_exact_arithmetic() -> None:
    """The map of each image is convolution and GroupNorm to rounding, where moments are in float64 too."""
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(10, 16, 1).double(), nn.GroupNorm(4, 16).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    c1 = torch.randn(3, 10, 9, 7, dtype=torch.float64) * torch.rand(10, 1, 1) + 5 * torch.randn(10, 1, 1)
    found = ChannelMap.of_neck(convolution, norm, Moments.stack([Moments.of(one) for one in c1]))
    mapped = torch.einsum("boc,bchw->bohw", found.weight, c1) + found.bias[:, :, None, None]
    torch.testing.assert_close(mapped, norm(convolution(c1)), rtol=1e-10, atol=1e-10)


def test_gradients_reach_a_c1_that_learns() -> None:
    """Where the detector learns too, nothing is stored and C1 takes its gradient through the moments."""
    head = build(SMALL, hidden=16).double()
    features = converted(across_the_border(random_features(SMALL, [(96, 128)])), torch.float64)
    grads: list[Tensor] = []
    for path in ("full", "local"):
        c1 = features.c1.clone().requires_grad_()
        logits = regions(head, replace(features, maps={**features.maps, "c1": c1}), path)
        grads.extend(torch.autograd.grad(logits.square().sum(), [c1]))
    assert (grads[0] - grads[1]).norm() <= 1e-9 * grads[0].norm()


@torch.no_grad()
def test_stored_moments_are_used() -> None:
    head = build(SMALL, hidden=16)
    features = with_moments(across_the_border(random_features(SMALL, SIZES)))
    true = regions(head, features, "local")
    doubled = {"c1": Moments(features.moments["c1"].mean, 2 * features.moments["c1"].covariance)}
    assert not torch.allclose(regions(head, replace(features, moments=doubled), "local"), true, rtol=1e-2)


@torch.no_grad()
def test_no_box_at_all() -> None:
    head = build(SMALL, hidden=16)
    features = random_features(SMALL, [(96, 128)] * 2)
    none = [torch.zeros(0, 4)] * 2
    head.config = replace(head.config, neck_path="local")
    assert head(features, none, [torch.zeros(0, 24)] * 2).mask_logits.shape == (0, 8, 8)


@torch.no_grad()
def test_half_precision_is_the_same_but_for_rounding() -> None:
    head = build(SMALL, hidden=16)
    features = with_moments(random_features(SMALL, SIZES))
    exact = regions(head, features, "local")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = regions(head, features, "local")
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.03


@torch.no_grad()
def test_direct_samples_the_encoder_map_on_its_own_grid() -> None:
    settings = {"image_encoder": "none", "neck": False, "hidden": 16}
    features = random_features(EQUAL, [(96, 128)])
    boxes = [features.boxes[0]]
    pixels = [
        torch.cat([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1) * torch.tensor([128, 96, 128, 96])
        for b in boxes
    ]
    exact, direct = build(EQUAL, **settings), build(EQUAL, **settings, upsample="direct")
    apart = [roi_align([source], pixels, 8) for source in ((features.c1, 4), (features.maps["e8"], 8))]
    assert torch.allclose(direct.pool(features, boxes), apart[0] + apart[1], atol=1e-5)
    upsampled = F.interpolate(features.maps["e8"], size=features.c1.shape[2:], mode="bilinear")
    assert torch.allclose(exact.pool(features, boxes), roi_align([(features.c1 + upsampled, 4)], pixels, 8), atol=1e-5)
    assert not torch.allclose(exact.pool(features, boxes), direct.pool(features, boxes), atol=1e-2)


def test_auto_takes_the_cheaper() -> None:
    cells, bins, counts = 200 * 304, 32 * 32, range(0, 301, 10)

    def choices(**changes: Any) -> list[bool]:
        r50 = {"channels": 256, "width": 256, "hidden": 128, "samples": 4}
        fields: dict[str, Any] = {**r50, "neck": True, "moments": True, "learning": True, **changes}
        return [cheaper_on_boxes(cells=cells, bins=n * bins, **fields) for n in counts]

    assert choices()[0]
    assert not choices()[-1]
    assert choices() == sorted(choices(), reverse=True)  # more boxes never make their side cheaper
    assert sum(choices()) > sum(choices(moments=False))
    assert sum(choices()) > sum(choices(learning=False)) > 1
    # added as it is, C1 costs nothing on the map
    assert not any(choices(hidden=256, neck=False)[1:])


@torch.no_grad()
def test_auto_is_one_of_the_two_for_each_map() -> None:
    head = build(SMALL, hidden=16)
    every = with_moments(random_features(SMALL, [(384, 512)], detections=200))

    def same(path: str, boxes: int) -> bool:
        some = replace(every, boxes=every.boxes[:, :boxes], queries=every.queries[:, :boxes])
        return torch.equal(regions(head, some, "auto"), regions(head, some, path))

    assert (same("full", 200), same("local", 200)) == (True, False)
    assert (same("full", 20), same("local", 20)) == (False, False)  # C1 on the boxes, the encoder map on its map
    assert (same("full", 1), same("local", 1)) == (False, True)


def test_a_local_mapper_sees_no_map() -> None:
    """A linear layer on all cells would cost what `local` is there to save."""
    head = build(SMALL, hidden=16)
    assert head.region_mapper is not None
    shapes: list[tuple[int, int]] = []
    head.region_mapper.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape[2:])))
    for path, cells in (("local", (8, 8)), ("full", (6, 8))):
        shapes.clear()
        regions(head, with_moments(random_features(SMALL, [(96, 128)])), path)
        assert cells in shapes
        assert ((6, 8) in shapes) == (path == "full")


@pytest.mark.gpu
@each_case
def test_local_equals_full_on_a_gpu(widths: Widths, settings: dict[str, object]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    features = with_moments(across_the_border(random_features(widths, SIZES)))
    moments = {name: Moments(both.mean.cuda(), both.covariance.cuda()) for name, both in features.moments.items()}
    tensors: dict[str, Any] = {name: getattr(features, name).cuda() for name in ("queries", "boxes", "input_hw")}
    maps = {name: one.cuda() for name, one in features.maps.items()}
    features = replace(features, maps=maps, moments=moments, **tensors)
    head = build(widths, **settings).cuda()
    with torch.no_grad():
        full, local = (regions(head, features, path) for path in ("full", "local"))
    assert (local - full).norm() <= 1e-3 * full.norm()  # convolutions in TF32
