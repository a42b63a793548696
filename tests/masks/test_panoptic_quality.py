"""PQ beside torchmetrics, and COCO's rules for void and crowds beside numbers worked out by hand."""

import numpy as np
import pytest
import torch

from pipeline.masks.panoptic_quality import PanopticQuality, TruthSegment

THINGS = {1: True, 2: True, 5: False, 7: False, 9: False}  # nothing is of 9


def blobs(rng: np.random.Generator, side: int = 24) -> tuple[np.ndarray, dict[int, int]]:
    """A map of rectangles over a background, void in a corner; stuff is one segment for each class."""
    ids, classes = np.full((side, side), 1), {1: 5}
    for number in range(2, 8):
        y, x = rng.integers(0, side - 6, 2)
        h, w = rng.integers(3, 12, 2)
        category = int(rng.choice([1, 2, 5, 7]))
        same = [i for i, one in classes.items() if one == category and not THINGS[category]]
        segment = same[0] if same else number
        ids[y : y + h, x : x + w] = segment
        classes[segment] = category
    ids[:4, : rng.integers(0, 12)] = 0
    return ids, {i: one for i, one in classes.items() if (ids == i).any()}


def shaken(rng: np.random.Generator, ids: np.ndarray, classes: dict[int, int]) -> tuple[np.ndarray, dict[int, int]]:
    """Moved by a pixel or two, some segments gone, some of another thing class.

    No pixel is without a segment: to COCO's rules such a pixel counts as missing, to torchmetrics as void.
    """
    moved = np.roll(ids, tuple(rng.integers(-2, 3, 2)), (0, 1))
    told = dict(classes)
    told.setdefault(1, 5)
    for i in list(told):
        if rng.random() < 0.15:
            moved[moved == i] = 1
        elif THINGS[told[i]] and rng.random() < 0.2:
            told[i] = 3 - told[i]
    moved[moved == 0] = 1
    return moved, {i: one for i, one in told.items() if (moved == i).any()}


def test_figures_are_those_of_torchmetrics() -> None:
    detection = pytest.importorskip("torchmetrics.detection")
    peer = detection.PanopticQuality(
        things={1, 2}, stuffs={5, 7, 9}, return_sq_and_rq=True, return_per_class=True,
        allow_unknown_preds_category=True,
    )  # fmt: skip
    quality, rng = PanopticQuality(THINGS), np.random.default_rng(3)

    def as_peer(ids: np.ndarray, classes: dict[int, int]) -> torch.Tensor:
        category = np.vectorize(lambda i: classes.get(i, 1000))(ids)  # a class that is neither is void
        return torch.from_numpy(np.stack([category, ids], axis=-1))[None]

    for _ in range(40):
        ids, classes = blobs(rng)
        found, told = shaken(rng, ids, classes)
        quality.add(ids, {i: TruthSegment(one) for i, one in classes.items()}, found, told)
        peer.update(as_peer(found, told), as_peer(ids, classes))
    expected = dict(zip([1, 2, 5, 7, 9], peer.compute().reshape(-1, 3).tolist(), strict=True))
    mine = quality.classes()
    for category in (1, 2, 5, 7):
        assert list(mine[category].values()) == pytest.approx([100 * v for v in expected[category]], abs=2e-3)
    assert mine[9] == {"PQ": None, "SQ": None, "RQ": None}
    means = {kind: np.mean([expected[i] for i in ids], axis=0) for kind, ids in KINDS.items()}
    for suffix, values in means.items():
        got = [quality.figures()[f"{name}{suffix}"] for name in ("PQ", "SQ", "RQ")]
        assert got == pytest.approx((100 * values).tolist(), abs=2e-3)
    assert 10 < quality.figures()["PQ"] < 90  # type: ignore[operator]


KINDS = {"": (1, 2, 5, 7), "_th": (1, 2), "_st": (5, 7)}


def one_row(*lengths: tuple[int, int]) -> np.ndarray:
    """One line of pixels: (id, how many) ..."""
    return np.repeat([i for i, _ in lengths], [n for _, n in lengths])[None]


def tally_of(
    truth: np.ndarray, segments: dict[int, TruthSegment], found: np.ndarray, told: dict[int, int], category: int = 1
) -> tuple[float, int, int, int]:
    quality = PanopticQuality(THINGS)
    quality.add(truth, segments, found, told)
    tally = quality.tallies[category]
    return tally.iou, tally.matched, tally.missed, tally.invented


def test_void_pixels_are_in_no_union() -> None:
    truth, found = one_row((1, 6), (0, 6)), one_row((8, 12))
    assert tally_of(truth, {1: TruthSegment(1)}, found, {8: 1}) == (1.0, 1, 0, 0)  # 6 / (6 + 12 - 6 - 6)


def test_just_one_half_is_no_match() -> None:
    truth, found = one_row((1, 6), (2, 6)), one_row((8, 12))
    segments = {1: TruthSegment(1), 2: TruthSegment(5)}
    assert tally_of(truth, segments, found, {8: 1}) == (0.0, 0, 1, 1)
    assert tally_of(one_row((1, 7), (2, 5)), segments, found, {8: 1}) == (pytest.approx(7 / 12), 1, 0, 0)


def test_what_lies_mostly_in_void_is_no_mistake() -> None:
    segments, told = {1: TruthSegment(5)}, {8: 1}
    assert tally_of(one_row((0, 7), (1, 5)), segments, one_row((8, 12)), told) == (0.0, 0, 0, 0)
    assert tally_of(one_row((0, 6), (1, 6)), segments, one_row((8, 12)), told) == (0.0, 0, 0, 1)  # not more than half


def test_a_crowd_is_not_missed_and_excuses_its_own_class_alone() -> None:
    truth = one_row((1, 8), (2, 4))
    segments = {1: TruthSegment(1, iscrowd=True), 2: TruthSegment(5)}
    assert tally_of(truth, segments, one_row((8, 12)), {8: 1}) == (0.0, 0, 0, 0)
    assert tally_of(truth, segments, one_row((8, 12)), {8: 2}, category=2) == (0.0, 0, 0, 1)
    assert tally_of(truth, segments, one_row((8, 8), (0, 4)), {8: 1}) == (0.0, 0, 0, 0)  # no match either


def test_nothing_at_all() -> None:
    assert set(PanopticQuality(THINGS).figures().values()) == {None}
