import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tiny import SIDE, WIDTH, Tiny, write_onnx, write_tiny

from featcache import LevelSpec
from pipeline.detectors.onnx import OnnxDetector
from pipeline.detectors.registry import build_detector
from pipeline.errors import PipelineError

Edit = Callable[[str, str], "OnnxDetector"]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return write_tiny(tmp_path)


@pytest.fixture
def edited(tiny: Tiny) -> Edit:
    """Build the detector after replacing a text in its TOML."""

    def build(old: str, new: str) -> OnnxDetector:
        text = tiny.toml.read_text()
        assert old in text
        tiny.toml.write_text(text.replace(old, new))
        return build_detector(str(tiny.toml), tiny.weights)  # type: ignore[return-value]

    return build


def raw_tensors(weights: Path, images: torch.Tensor, names: list[str]) -> list[np.ndarray]:
    """What the untouched file computes, with inner tensors listed as outputs by hand."""
    model = onnx.load(weights)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {"images": images.numpy(), "sizes": np.ones((1, 1, 4), dtype=np.int64)})


def test_shapes_come_from_a_dry_run(tiny: Tiny) -> None:
    detector = build_detector(str(tiny.toml), tiny.weights)
    assert detector.levels == (
        LevelSpec("c1", 4, WIDTH, (16, 16)),
        LevelSpec("e16", 16, WIDTH, (4, 4)),
        LevelSpec("e8", 8, WIDTH, (8, 8)),
    )
    assert detector.encoder == ("e8", "e16")  # fine to coarse, whatever the order in the TOML
    assert (detector.detections, detector.query_dim, detector.classes) == (20, WIDTH, 3)
    assert detector.category_ids is None


def test_features_are_the_tensors_of_the_graph(tiny: Tiny) -> None:
    detector = build_detector(str(tiny.toml), tiny.weights)
    images = torch.rand(2, 3, SIDE, SIDE)
    features = detector.detect(images)
    names = ["/c1/out", "/e8/out", "/decoder/logits", "/decoder/boxes", "/decoder/queries"]
    c1, e8, logits, boxes, queries = (torch.from_numpy(a) for a in raw_tensors(tiny.weights, images, names))
    assert torch.equal(features.c1, c1)
    assert torch.equal(features.levels[0], e8)
    assert features.strides == {"c1": 4, "e8": 8, "e16": 16}
    assert features.input_hw.tolist() == [[SIDE, SIDE]] * 2
    for row in range(2):
        probs = logits[row].sigmoid()
        order = probs.flatten().argsort(descending=True)[:20]
        assert torch.equal(features.scores[row], probs.flatten()[order])
        assert torch.equal(features.labels[row], order % 3)
        assert torch.equal(features.boxes[row], boxes[row, order // 3])
        assert torch.equal(features.queries[row], queries[row, order // 3])


def test_a_batch_is_its_images_one_by_one(tiny: Tiny) -> None:
    images = torch.rand(3, 3, SIDE, SIDE)
    free = build_detector(str(tiny.toml), tiny.weights)
    write_onnx(tiny.weights, batch=1)
    fixed = build_detector(str(tiny.toml), tiny.weights)
    for name in ("queries", "boxes", "scores", "labels"):
        batch = getattr(free.detect(images), name)
        assert torch.equal(batch, getattr(fixed.detect(images), name))
        assert torch.equal(batch[1:2], getattr(free.detect(images[1:2]), name))


def test_softmax_drops_the_column_of_no_object(tiny: Tiny, edited: Edit) -> None:
    write_onnx(tiny.weights, classes=4)
    detector = edited('scores = "/decoder/logits"', 'scores = "/decoder/logits"\nactivation = "softmax"')
    images = torch.rand(1, 3, SIDE, SIDE)
    (logits,) = raw_tensors(tiny.weights, images, ["/decoder/logits"])
    probs = torch.from_numpy(logits).softmax(-1)[..., :3]
    assert detector.classes == 3
    assert torch.equal(detector.detect(images).scores[0], probs.flatten().sort(descending=True).values[:20])


def test_columns_by_category_id_become_labels_in_order_of_id(tiny: Tiny, edited: Edit) -> None:
    detector = edited("top_k = 20", "top_k = 20\nclasses = [7, 0, 3]")
    plain = OnnxDetector
    assert detector.category_ids == (3, 7)
    images = torch.rand(1, 3, SIDE, SIDE)
    (logits,) = raw_tensors(tiny.weights, images, ["/decoder/logits"])
    probs = torch.from_numpy(logits[0]).sigmoid()[:, [2, 0]].flatten()
    order = probs.argsort(descending=True)[:20]
    assert isinstance(detector, plain)
    assert torch.equal(detector.detect(images).labels[0], order % 2)


def test_coco_91_leaves_out_the_unused_ids(tiny: Tiny, edited: Edit) -> None:
    write_onnx(tiny.weights, classes=91)
    detector = edited("top_k = 20", 'top_k = 20\nclasses = "coco-91"')
    assert detector.classes == 80
    assert detector.category_ids is not None
    assert detector.category_ids[:13] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14)
    assert detector.category_ids[-1] == 90


def test_corner_boxes_become_centres_and_sizes(tiny: Tiny, edited: Edit) -> None:
    images = torch.rand(1, 3, SIDE, SIDE)
    before = build_detector(str(tiny.toml), tiny.weights).detect(images).boxes
    after = edited("[outputs]", '[outputs]\nbox_format = "xyxy"').detect(images).boxes
    torch.testing.assert_close(after[..., :2], (before[..., :2] + before[..., 2:]) / 2)
    torch.testing.assert_close(after[..., 2:], before[..., 2:] - before[..., :2])


def test_identity_knows_weights_transform_and_taps_but_not_how_many_are_kept(tiny: Tiny, edited: Edit) -> None:
    first = build_detector(str(tiny.toml), tiny.weights).identity
    assert edited("top_k = 20", "top_k = 10").identity == first
    assert edited("std = [0.25", "std = [0.5").identity != first


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('tensor = "/e8/out"', 'tensor = "/e8/outt"', "no tensor '/e8/outt'", "'/e8/out'"),
        ('scores = "/decoder/logits"', 'scores = "/decoder/logit"', "no tensor '/decoder/logit'", "'/decoder/logits'"),
        ('input = "images"', 'input = "image"', "no input 'image'", "images"),
        ('boxes = "/decoder/boxes"', 'boxes = "/post/sizes"', "more than the image: sizes", "fixed"),
        ("top_k = 20", "topk = 20", "unknown key 'topk'", "'top_k'"),
        ("size = 64", "sise = 64", "unknown key 'sise'", "'size'"),
        ("size = 64", "size = 32", "takes images of 64 x 64", "size"),
        ("size = 64", "size = '64'", "size is '64', expected int", ""),
        ("top_k = 20", "top_k = 0", "top_k is 0", ""),
        ("stride = 8", "stride = 32", r"tap 'e8' has shape \(1, 8, 8, 8\), expected \(1, c, 2, 2\)", "/e8/out"),
        ('tensor = "/e8/out"', 'tensor = "/decoder/queries"', r"tap 'e8' has shape \(1, 16, 8\)", "/decoder/queries"),
        ('queries = "/decoder/queries"', 'queries = "/decoder/flat"', r"'/decoder/flat' has shape \(1, 8, 16\)", ""),
        ('name = "e8"', 'name = "e16"', "two taps have one name", ""),
        ('role = "encoder"', 'role = "backbone"', "no tap has role = 'encoder'", ""),
        ('role = "encoder"', 'role = "neck"', "role is 'neck'", "backbone, encoder"),
        ("top_k = 20", "top_k = 20\nclasses = [1, 2]", "`classes` names 2 columns, '/decoder/logits' has 3", ""),
        ("top_k = 20", 'top_k = 20\nsha256 = "00ff"', "not the file 'tiny' was written for", "mine.toml"),
        ("top_k = 20", "top_k = ", "not valid TOML", ""),
    ],
)
def test_a_wrong_toml_is_told_what_is_wrong(edited: Edit, old: str, new: str, message: str, hint: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        edited(old, new)
    assert hint in caught.value.hint


def test_other_files_and_batches_are_refused(tiny: Tiny) -> None:
    write_onnx(tiny.weights, batch=4)
    with pytest.raises(PipelineError, match="baked-in batch of 4"):
        build_detector(str(tiny.toml), tiny.weights)
    tiny.weights.write_bytes(b"no model at all")
    with pytest.raises(PipelineError, match="not an ONNX file"):
        build_detector(str(tiny.toml), tiny.weights)


def test_devices_that_are_not_there_are_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(PipelineError, match="torch sees no GPU for 'cuda:0'"):
            build_detector(str(tiny.toml), tiny.weights, device="cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PipelineError, match="cannot run on 'cuda:0'") as caught:
        build_detector(str(tiny.toml), tiny.weights, device="cuda:0")
    assert "onnxruntime-gpu" in caught.value.hint
    with pytest.raises(PipelineError, match="unknown device 'tpu'"):
        build_detector(str(tiny.toml), tiny.weights, device="tpu")


def test_a_gpu_that_onnxruntime_leaves_out_is_told(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes a line to its log and takes the processor, many times slower."""
    session = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        ort, "InferenceSession", lambda *given, providers: session(*given, providers=["CPUExecutionProvider"])
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PipelineError, match="its CUDAExecutionProvider does not load") as caught:
        build_detector(str(tiny.toml), tiny.weights, device="cuda")
    assert "onnxruntime-gpu" in caught.value.hint


def test_missing_extra_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PipelineError, match="need the package 'onnxruntime'") as caught:
        build_detector(str(tiny.toml), tiny.weights)
    assert caught.value.hint == "pip install 'featcache[onnx]'"
