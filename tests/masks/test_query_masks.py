"""Queries -> pixels, segments and classes beside torch's interpolation and the post-processing of transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.data.panoptic import SegmentClass
from pipeline.data.views import View, resolve
from pipeline.masks.panoptic import panoptic
from pipeline.masks.query_masks import QueryMasks, Upsampling
from pipeline.masks.semantic import UNSEEN, semantic

CLASSES = (*(SegmentClass(i + 1, True, i) for i in range(3)), *(SegmentClass(i + 90, False, -1) for i in range(3)))
SIDE = 384
"""The grid that transformers brings every mask to before it does anything."""


def random_queries(
    seed: int, hw: tuple[int, int], stride: int, input_hw: tuple[int, int], count: int = 12
) -> QueryMasks:
    """Smooth masks that share the image, with seams where two are; most queries sure of a class, some of the same."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(count, len(CLASSES) + 1, generator=generator) * 4
    coarse = torch.randn(1, count, 5, 5, generator=generator)
    fields = F.interpolate(coarse, size=hw, mode="bicubic")[0]
    logits = 8 * (fields - fields.amax(0)) + 2
    return QueryMasks(class_logits.softmax(-1), logits, stride, input_hw, CLASSES, "panoptic", 0.5, 0.6)


@pytest.mark.parametrize("mirrored", [False, True])
def test_masks_come_to_the_image_as_torch_resizes_them(mirrored: bool) -> None:
    queries, image_hw = random_queries(0, (14, 19), 4, (53, 74)), (40, 61)
    upsampled = F.interpolate(queries.mask_logits[None], size=(56, 76), mode="bilinear", align_corners=False)
    expected = F.interpolate(upsampled[:, :, :53, :74], size=image_hw, mode="bilinear", align_corners=False)[0]
    view = resolve("hflip" if mirrored else "orig", 0, image_hw)
    found = Upsampling.of(queries, view).logits(queries.mask_logits)
    if mirrored:
        upsampled = upsampled[:, :, :53, :74].flip(-1)
        expected = F.interpolate(upsampled, size=image_hw, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_segments_are_those_of_the_official_rules() -> None:
    merged = 0
    for seed in range(6):
        queries = random_queries(seed, (30, 40), 4, (120, 160))
        found = panoptic(queries, resolve("orig", 0, (120, 160)))
        upsampled = F.interpolate(queries.mask_logits[None], size=(120, 160), mode="bilinear", align_corners=False)[0]
        ids, segments, joined = official(queries, upsampled.sigmoid())
        assert [(one.id, one.segment_class.category_id) for one in found.segments] == segments
        assert (found.ids != ids.numpy()).mean() < 1e-4  # a pixel on an edge may fall either way
        merged += joined
    assert merged  # stuff of two queries


def official(queries: QueryMasks, probs: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]], int]:
    """The rules of section 5 of Mask2Former's fact sheet, all masks at once: "q h w" -> ids, (id, category), merged."""
    scores, labels = queries.probs.max(-1)
    keep = labels.ne(len(CLASSES)) & (scores > queries.object_threshold)
    scores, labels, probs = scores[keep], labels[keep], probs[keep]
    owner = (scores.view(-1, 1, 1) * probs).argmax(0)
    ids, segments, stuff, merged = torch.zeros(probs.shape[1:], dtype=torch.int64), [], {}, 0
    for k, label in enumerate(labels.tolist()):
        mask = (owner == k) & (probs[k] >= 0.5)
        won, whole = (owner == k).sum().item(), (probs[k] >= 0.5).sum().item()
        if not (won and whole and mask.any()) or won / whole < queries.overlap_threshold:
            continue
        if label in stuff:
            ids[mask] = stuff[label]
            merged += 1
            continue
        segments.append((len(segments) + 1, CLASSES[label].category_id))
        ids[mask] = len(segments)
        if not CLASSES[label].isthing:
            stuff[label] = len(segments)
    return ids, segments, merged


def test_segments_are_those_of_transformers() -> None:
    """On queries that are sure, since it weighs masks before it cuts them; without its fusing, which gives an id twice.

    It also paints where a query wins with less than one half; such pixels are left out.
    """
    processor, peer = peer_processor()
    compared = 0
    for seed in range(4):
        queries = random_queries(seed, (SIDE, SIDE), 1, (SIDE, SIDE))
        queries = replace(queries, probs=(queries.probs.log() * 50).softmax(-1))
        found = panoptic(queries, resolve("orig", 0, (SIDE, SIDE)))
        result = processor.post_process_panoptic_segmentation(
            peer(queries), threshold=0.5, mask_threshold=0.5, overlap_mask_area_threshold=0.6,
            label_ids_to_fuse={-1}, target_sizes=[(SIDE, SIDE)],
        )[0]  # fmt: skip
        labels = np.full(len(result["segments_info"]) + 1, -1)
        for one in result["segments_info"]:
            labels[one["id"]] = one["label_id"]
        mine = np.array([-1, *(CLASSES.index(one.segment_class) for one in found.segments)])
        painted = found.ids > 0
        assert (labels[result["segmentation"].numpy()] == mine[found.ids])[painted].mean() > 0.9999
        assert [(labels == k).sum() for k in range(3)] == [(mine == k).sum() for k in range(3)]  # things
        assert set(labels) == set(mine)
        assert painted.mean() > 0.5
        compared += len(found.segments)
    assert compared > 12


def test_classes_are_those_of_transformers() -> None:
    processor, peer = peer_processor()
    for seed in range(3):
        queries = random_queries(seed, (SIDE, SIDE), 1, (SIDE, SIDE))
        expected = processor.post_process_semantic_segmentation(peer(queries), target_sizes=[(SIDE, SIDE)])[0]
        found = semantic(queries, resolve("orig", 0, (SIDE, SIDE)))
        assert (found == expected.numpy()).mean() > 0.9999
        assert len(np.unique(found)) > 2


def peer_processor():
    pytest.importorskip("transformers")
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

    def output(queries: QueryMasks) -> Mask2FormerForUniversalSegmentationOutput:
        return Mask2FormerForUniversalSegmentationOutput(
            class_queries_logits=queries.probs.log()[None], masks_queries_logits=queries.mask_logits[None]
        )

    return Mask2FormerImageProcessorPil(), output


def test_no_sure_query_leaves_the_image_empty() -> None:
    queries = random_queries(0, (8, 8), 4, (32, 32))
    nothing = torch.zeros_like(queries.probs)
    nothing[:, -1] = 1
    unsure = QueryMasks(nothing, queries.mask_logits, 4, (32, 32), CLASSES, "panoptic", 0.8, 0.8)
    found = panoptic(unsure, resolve("orig", 0, (20, 30)))
    assert not found.segments
    assert not found.ids.any()
    none = QueryMasks(nothing[:0], queries.mask_logits[:0], 4, (32, 32), CLASSES, "panoptic", 0.8, 0.8)
    assert not panoptic(none, resolve("orig", 0, (20, 30))).ids.any()
    assert semantic(none, resolve("orig", 0, (20, 30))).shape == (20, 30)


def test_what_a_view_does_not_show_has_neither_segment_nor_class() -> None:
    queries = random_queries(1, (8, 8), 4, (32, 32))
    view = View((40, 60), (10.0, 5.0, 50.0, 30.0))
    labels, segments = semantic(queries, view), panoptic(queries, view)
    seen = np.zeros((40, 60), dtype=bool)
    seen[5:30, 10:50] = True
    assert ((labels != UNSEEN) == seen).all()
    assert segments.ids[seen].any()
    assert not segments.ids[~seen].any()
    whole = semantic(queries, resolve("orig", 0, (25, 40)))
    assert (labels[seen].reshape(25, 40) == whole).all()
