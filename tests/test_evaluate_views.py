"""Masks that are means over views: `evaluate --views`."""

from pathlib import Path

import pytest
import torch
from tiny import Tiny

from pipeline import contender, evaluate, extract, train
from pipeline.data.sources import Cached
from pipeline.data.transforms import flip_boxes
from pipeline.errors import PipelineError
from pipeline.masks.scores import mask_quality
from pipeline.training.checkpoint import load_head

HEAD = {"hidden": "8", "roi": "8", "image_layers": "1", "box_layers": "1", "heads": "2", "mask_scoring": "false"}


def test_views_take_part_in_the_masks_and_in_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "c", views=("orig", "hflip", "scale0.5"))
    settings = {**HEAD, "steps": "2", "batch_size": "2"}
    run = train.main(cache=cache, head="mask-frozen-detr", run=tmp_path / "run", settings=settings)
    plain = evaluate.main(cache=cache, run=run)
    results = [(run / "results.json").read_bytes()]
    for views in (["hflip"], ["hflip", "scale0.5"]):
        assert evaluate.main(cache=cache, run=run, views=views)["bbox"] == plain["bbox"]
        results.append((run / "results.json").read_bytes())
    assert len(set(results)) == 3
    evaluate.main(cache=cache, run=run, views=["all"])
    assert (run / "results.json").read_bytes() == results[-1]
    evaluated = (run / "evaluated.json").read_bytes()
    evaluate.main(cache=cache, run=run, views=["hflip", "scale0.5", "hflip"])
    assert (run / "evaluated.json").read_bytes() == evaluated
    head, _ = load_head(run)
    source = Cached(cache)
    batch, mirror = (source.batch([(3, view)]) for view in ("orig", "hflip"))
    queries = [batch.features.queries[0]]
    one = head.infer(batch.features, [batch.features.boxes[0]], queries).mask_logits
    other = head.infer(mirror.features, [flip_boxes(batch.features.boxes[0])], queries).mask_logits.flip(-1)
    masks = contender.predictor(head, source, ["hflip"])(batch)
    torch.testing.assert_close(masks.mask_logits, (one + other) / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masks.boxes, batch.features.boxes[0])
    torch.testing.assert_close(masks.scores, batch.features.scores[0] * mask_quality((one + other) / 2))


def test_views_must_be_there_and_the_masks_those_of_given_boxes(tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "c")
    run = train.main(cache=cache, head="baseline", run=tmp_path / "run")
    with pytest.raises(PipelineError, match="does not hold the view 'hflip', only orig") as refused:
        evaluate.main(cache=cache, run=run, views=["hflip"])
    assert "--views orig,hflip" in refused.value.hint
    with pytest.raises(PipelineError, match=r"'orig' is the view that every evaluation of .* looks at"):
        evaluate.main(cache=cache, run=run, views=["all"])
    both = tmp_path / "both"
    extract.main(**tiny.arguments, cache=both, views=("orig", "hflip"))
    whole = train.main(cache=both, head="baseline", run=tmp_path / "whole")
    with pytest.raises(PipelineError, match="a Baseline predicts in a way of its own"):
        evaluate.main(cache=both, run=whole, views=["all"])
