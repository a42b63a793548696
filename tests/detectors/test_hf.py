"""Numbers of `hf:` detectors beside those of the same model, its outputs and its own post-processing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hf import FAMILIES, own_processor, write_hf
from torch import Tensor
from transformers import AutoModelForObjectDetection

from pipeline.data.coco import Category, CocoSet
from pipeline.data.transforms import view_to_original
from pipeline.detectors.classes import COCO_UNUSED
from pipeline.detectors.hf import HfDetector, build
from pipeline.detectors.registry import build_detector
from pipeline.errors import PipelineError
from pipeline.extract import check_categories

Saved = Callable[..., Path]
"""(family, labels=) -> the folder of its model, written once."""

MAPS = {
    "deformable_detr": ("c1", "e8", "e16", "e32", "e64"),
    "rt_detr": ("c1", "e8", "e16", "e32"),
    "detr": ("c1", "e32"),
}
MAPS |= {"deformable_detr-two-stage": MAPS["deformable_detr"], "conditional_detr": MAPS["detr"]}
MAPS |= {"rt_detr_v2": MAPS["rt_detr"], "d_fine": MAPS["rt_detr"]}


SIGMOID = tuple(family for family in FAMILIES if family != "detr")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    root = tmp_path_factory.mktemp("hf")

    def write(family: str, labels: int = 3) -> Path:
        folder = root / f"{family}-{labels}"
        return folder if folder.exists() else write_hf(folder, family, labels=labels)

    return write


@pytest.fixture(autouse=True)
def _offline(no_network: None) -> None:
    pass


def images_for(detector: HfDetector, count: int = 2) -> Tensor:
    """Of a size off every stride, where the model takes any."""
    height, width = (64, 64) if detector.transform.resize == "square" else (67, 90)
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def own_outputs(folder: Path, image: Tensor) -> tuple[Any, Any]:
    """The model as `transformers` loads it, and what it gives for one image."""
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        return model, model(pixel_values=image)


def own_c1(model: Any, image: Tensor) -> Tensor:
    """Stage 1 of the backbone by the backbone's own means."""
    backbone = model.model.backbone.model
    with torch.no_grad():
        if hasattr(backbone, "stage_names"):
            return backbone(image, output_hidden_states=True).hidden_states[backbone.stage_names.index("stage1")]
        for name in ("conv1", "bn1", "act1", "maxpool", "layer1"):
            image = getattr(backbone, name, torch.nn.Identity())(image)
        return image


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_the_backbones_stage_1_and_the_encoder_memory(saved: Saved, family: str) -> None:
    detector = build(str(saved(family)))
    images = images_for(detector)
    features = detector.detect(images)
    assert tuple(features.maps) == tuple(level.name for level in detector.levels) == MAPS[family]
    assert features.encoder == MAPS[family][1:]
    for row in range(2):
        model, outputs = own_outputs(saved(family), images[row : row + 1])
        assert torch.equal(features.c1[row : row + 1], own_c1(model, images[row : row + 1]))
        memory = outputs.encoder_last_hidden_state
        if isinstance(memory, Tensor):
            ours = torch.cat([level[row].flatten(1) for level in features.levels], dim=1)
            assert torch.equal(ours.T, memory[0])
        else:
            for ours, theirs in zip(features.levels, memory, strict=True):
                assert torch.equal(ours[row], theirs[0])


@pytest.mark.parametrize(("family", "labels"), [*((f, 3) for f in FAMILIES), *((f, 91) for f in SIGMOID)])
def test_detections_are_those_of_the_models_own_post_processing(saved: Saved, family: str, labels: int) -> None:
    """With 91 labels, without those that stand for no category."""
    folder = saved(family, labels)
    detector = build(str(folder))
    image, image_hw = images_for(detector, 1), (480, 640)
    features = detector.detect(image)
    _, outputs = own_outputs(folder, image)
    options = {"top_k": 10_000} if detector.family.top_k else {}  # so that unused labels push none out
    (own,) = own_processor(folder).post_process_object_detection(outputs, 0.0, torch.tensor([image_hw]), **options)
    columns = torch.tensor([i for i in range(91) if i not in COCO_UNUSED] if labels == 91 else range(labels))
    keep = torch.isin(own["labels"], columns)
    order = own["scores"][keep].sort(descending=True, stable=True).indices[: detector.detections]
    scores, names, boxes = (own[key][keep][order] for key in ("scores", "labels", "boxes"))
    count = len(scores)
    assert count > 8
    torch.testing.assert_close(features.scores[0, :count], scores, rtol=0, atol=1e-6)
    assert columns[features.labels[0, :count]].tolist() == names.tolist()
    ours = view_to_original(features.boxes[0, :count], image_hw).float()
    torch.testing.assert_close(ours, boxes, rtol=0, atol=1e-3)


def test_each_query_of_detr_comes_once_with_its_best_category(saved: Saved) -> None:
    detector = build(str(saved("detr", 91)))
    image = images_for(detector, 1)
    features, (_, outputs) = detector.detect(image), own_outputs(saved("detr", 91), image)
    assert len(features.queries[0].unique(dim=0)) == features.queries.shape[1] == 12
    probs = outputs.logits[0].softmax(-1)
    probs[:, [*COCO_UNUSED, 91]] = 0
    best, rows = probs.max(-1).values.sort(descending=True)
    torch.testing.assert_close(features.scores[0], best)
    assert torch.equal(features.queries[0], outputs.last_hidden_state[0, rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_are_the_rows_that_made_the_detections(saved: Saved, family: str) -> None:
    """The class head, applied to a chosen query, gives the score of its detection."""
    detector = build(str(saved(family)))
    image = images_for(detector, 1)
    features = detector.detect(image)
    _, outputs = own_outputs(saved(family), image)
    for n in range(0, detector.detections, 5):
        (row,) = (features.queries[0, n] == outputs.last_hidden_state[0]).all(1).nonzero().flatten().tolist()
        logits = outputs.logits[0, row]
        probs = logits.softmax(0) if detector.family.softmax else logits.sigmoid()
        torch.testing.assert_close(probs[features.labels[0, n]], features.scores[0, n], rtol=0, atol=1e-6)
        assert torch.equal(outputs.pred_boxes[0, row], features.boxes[0, n])


def test_as_many_detections_as_the_models_own_post_processing_keeps(saved: Saved) -> None:
    counts = {family: build(str(saved(family, 91))).detections for family in FAMILIES}
    assert counts == {
        "deformable_detr": 100, "deformable_detr-two-stage": 100, "conditional_detr": 100,
        "rt_detr": 12, "rt_detr_v2": 12, "d_fine": 12, "detr": 12,
    }  # fmt: skip


def test_labels_are_positions_among_cocos_categories(saved: Saved) -> None:
    detector = build(str(saved("deformable_detr", 91)))
    assert detector.classes == 80
    assert detector.category_ids is not None
    assert detector.category_ids[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)
    assert int(detector.detect(images_for(detector)).labels.max()) < 80
    assert build(str(saved("rt_detr"))).category_ids is None


def test_the_same_categories_in_another_order_are_refused(saved: Saved, tmp_path: Path) -> None:
    """Without a look at the names the head would learn, and report, every object as another."""
    assert build(str(saved("rt_detr"))).category_names is None  # LABEL_0, LABEL_1 ...: not names
    folder = Path(shutil.copytree(saved("rt_detr"), tmp_path / "named"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "cat", "1": "Dog", "2": "fish"}
    (folder / "config.json").write_text(json.dumps(config))
    detector = build(str(folder))
    assert detector.category_names == ("cat", "Dog", "fish")

    def annotated(*names: str) -> CocoSet:
        categories = tuple(Category(id=10 + place, name=name) for place, name in enumerate(names))
        return CocoSet((), (), categories, "", None)

    check_categories(detector, annotated("cat", "dog", "fish"))
    check_categories(detector, annotated("Katze", "Hund", "Fisch"))
    with pytest.raises(PipelineError, match=r"label 1 of '.*' is 'dog', category 11 of the annotations is 'fish'"):
        check_categories(detector, annotated("cat", "fish", "dog"))


def test_a_head_can_be_trained_on_what_it_gives(saved: Saved) -> None:
    detector = build(str(saved("rt_detr")))
    features = detector.detect(images_for(detector))
    weight = torch.ones(16, requires_grad=True)
    (features.levels[0] * weight[:, None, None]).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, features.levels[0].sum((0, 2, 3)))


def test_c1_is_the_stem_where_stage_1_is_coarser(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m", "detr", backbone={"downsample_in_first_stage": True})
    detector = build(str(folder))
    images = images_for(detector)
    assert detector.identity["c1"] == "embedder"
    assert detector.encoder == ("e64",)
    model, _ = own_outputs(folder, images[:1])
    assert torch.equal(detector.detect(images).c1[:1], model.model.backbone.model.embedder(images[:1]))


def test_an_unknown_backbone_is_named(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m", "detr-swin")
    with pytest.raises(PipelineError, match="its backbone 'SwinBackbone' is not known here") as caught:
        build(str(folder))
    assert "encoder.stages.0" in caught.value.hint


def test_sizes_that_the_model_cannot_take_are_told(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "odd", "rt_detr", processor={"size": {"height": 72, "width": 72}})
    with pytest.raises(PipelineError, match=r"hf:odd does not run on images of 72 x 72") as caught:
        build(str(folder))
    assert "preprocessor_config.json" in caught.value.hint
    any_size = {"size": {"shortest_edge": 64, "longest_edge": 96}}
    folder = write_hf(tmp_path / "any", "d_fine", processor=any_size)
    with pytest.raises(PipelineError, match="models of type 'd_fine' take images of one size"):
        build(str(folder))


def test_devices_that_are_not_there_are_named(saved: Saved) -> None:
    with pytest.raises(PipelineError, match="unknown device 'tpu'"):
        build_detector(f"hf:{saved('detr')}", device="tpu")
