"""Annotations: what is refused, and what is odd but right. One clear error, and nothing lost."""

import json

import numpy as np
import pytest
from world import Case, Change, World, again, annotated, call

from featcache import Cache

REFUSED: dict[str, Case] = {
    "an annotation of an image that is not listed": (
        annotated(lambda coco: coco["annotations"][0].update(image_id=4711)),
        again(),
        "{annotations}: annotation 1 names image 4711, which is not listed",
        "add the image to `images`, or drop the annotation",
    ),
    "a category that is not listed": (
        annotated(lambda coco: coco["annotations"][2].update(category_id=99)),
        again(),
        "{annotations}: annotation 3 names category 99, which is not listed",
        "add the category to `categories`, or drop the annotation",
    ),
    "categories that are not the detector's": (
        annotated(lambda coco: coco["categories"].append({"id": 50, "name": "star"})),
        again(),
        "'tiny' gives 3 classes, the annotations have 4 categories",
        "use annotations with the categories the detector was trained on",
    ),
    "an annotation without a mask": (
        annotated(lambda coco: coco["annotations"][1].update(segmentation=[])),
        again(),
        "{annotations}: annotation 2 of image 100 has no mask",
        "masks are learned from `segmentation`: drop annotations with a box only",
    ),
    "annotations that are no JSON": (
        lambda world: world.tiny.annotations.write_text("{") and None,
        again(),
        "{annotations} is not readable JSON",
        "pass COCO instances JSON: --annotations FILE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence_and_nothing_is_touched(world: World, case: str) -> None:
    world.refuses(REFUSED[case])


# What is odd but right: it is taken as COCO means it, and stage 2 works on it.

TAKEN: dict[str, Change] = {
    "an image without objects": annotated(
        lambda coco: coco.update(annotations=[a for a in coco["annotations"] if a["image_id"] not in (100, 93)])
    ),
    "no annotations at all": annotated(lambda coco: coco.update(annotations=[])),
    "a box of no area": annotated(
        lambda coco: coco["annotations"][0].update(bbox=[20, 20, 0, 0], area=0, segmentation=[[20, 20] * 3])
    ),
    "crowd regions alone": annotated(
        lambda coco: coco.update(annotations=[a for a in coco["annotations"] if a["iscrowd"]])
    ),
    "a mask that goes beyond the image": annotated(
        lambda coco: coco["annotations"][0].update(segmentation=[[-30, -30, 500, -30, 500, 20, -30, 20]])
    ),
    "a mask outside the image": annotated(
        lambda coco: coco["annotations"][0].update(segmentation=[[900, 900, 950, 900, 950, 950, 900, 950]])
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_odd_annotations_are_taken_as_they_are(world: World, case: str) -> None:
    TAKEN[case](world)
    count = len(world.coco()["annotations"])
    assert world.extract(world.new).exit_code == 0
    cache = Cache(world.new)
    assert sum(len(cache.ground_truth(i)) for i in range(len(cache))) == count
    trained = world.train(world.new)
    assert trained.exit_code == 0, trained.stderr
    evaluated = call("pipeline", "evaluate", "--cache", world.new, "--run", world.folder("run-2"))
    assert evaluated.exit_code == 0, evaluated.stderr
    lines = (world.folder("run-2") / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get("loss", 0.0)) for line in lines)
