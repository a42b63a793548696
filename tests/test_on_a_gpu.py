"""The whole flow with `--device cuda` on a GPU that is pretended: every tensor is where a GPU needs it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from discs import write_discs
from pretend_gpu import OnGpu, pretended
from tiny import Tiny, write_tiny
from tiny_hf import write_hf
from tiny_panoptic import write_panoptic

from featcache import Cache, checks
from pipeline import ablate, evaluate, extract, predict, report, train
from pipeline.detectors import onnx
from pipeline.heads.base import MaskHead
from pipeline.train import LiveInputs
from pipeline.training.trainer import Trainer
from scripts.make_shapes import write_set

VIEWS = ("orig", "hflip")
SETTINGS = {
    "steps": "4", "warmup": "0", "batch_size": "2", "hidden": "16", "heads": "2", "log_every": "2",
    "checkpoint_every": "2",
}  # fmt: skip
BOXES = {**SETTINGS, "roi": "8"}
QUERIES = {**SETTINGS, "feed_forward": "32", "layers": "2", "queries": "9", "mask_points": "128"}
TABLE = """
about = "Three heads, one of them without parameters"
detector = "hdetr-r50"
head = "unet"
[[rows]]
name = "unet"
[[rows]]
name = "paper's"
head = "mask-frozen-detr"
[[rows]]
name = "baseline"
head = "baseline"
"""
HEADS: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("mask-frozen-detr", BOXES),
    "local": ("mask-frozen-detr", {**BOXES, "neck_path": "local", "image_encoder": "none"}),
    "convnext": ("mask-frozen-detr", {**BOXES, "image_encoder": "convnext", "box_encoder": "convnext"}),
    "swin": ("mask-frozen-detr", {**BOXES, "image_encoder": "swin", "box_encoder": "swin"}),
    "queries": ("mask-frozen-detr", {**BOXES, "query_encoder": "ffn,o2o,b2o", "mask_head": "segmenter"}),
    "other losses": (
        "mask-frozen-detr",
        {**BOXES, "match": "overlap", "jitter": "0.1", "loss": "full", "ema": "0.9", "amp": "bf16", "micro_batch": "1"},
    ),
    "unet": ("unet", BOXES),
    "mask2former": ("mask2former", QUERIES),
    "mask dino": ("mask-dino", QUERIES),
    "di-maskdino": ("di-maskdino", {**QUERIES, "guiding_tokens": "9"}),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """onnxruntime, whose tensors are NumPy's on any device, goes on computing here."""
    monkeypatch.setattr(onnx, "_providers", lambda *_: ["CPUExecutionProvider"])
    with pretended(monkeypatch):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_tiny(tmp_path_factory.mktemp("gpu") / "data")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("gpu") / "cache")


def test_what_a_gpu_refuses_is_refused(gpu: None) -> None:
    here, there = torch.ones(3), torch.ones(3).to("cuda")
    assert there.device == torch.zeros(2, device="cuda").device == (2 * there).device == torch.device("cuda", 0)
    for mixed in (lambda: here + there, lambda: here[there.long()], lambda: torch.stack([there[0], here[0]])):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    assert (there.cpu() + here).numpy().tolist() == [2, 2, 2]
    assert (there + here[0]).is_cuda
    layer = torch.nn.Linear(3, 2).to("cuda")
    layer(there).sum().backward()
    assert isinstance(layer.weight.grad, OnGpu)
    here.copy_(there)
    assert not here.is_cuda


@pytest.mark.parametrize("kind", ["onnx", "hf", "shapes-tiny"])
def test_extract(gpu: None, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path, kind: str) -> None:
    """The detector's features are on the GPU when they are put, and are those that a CPU gives."""
    inputs = tiny.arguments
    if kind == "hf":
        inputs = {**inputs, "detector": f"hf:{write_hf(tmp_path / 'hf', 'rt_detr')}", "weights": None}
    if kind == "shapes-tiny":
        annotations = write_set(tmp_path / "drawn", 2, 50)
        inputs = {"detector": kind, "images": annotations.parent / "images", "annotations": annotations}
    given: list[set[bool]] = []
    put = extract.CacheWriter.put

    def noted(writer: Any, *place: Any, **features: Any) -> None:
        tensors = [*features["maps"].values(), *(features[name] for name in ("queries", "boxes", "scores", "labels"))]
        given.append({tensor.is_cuda for tensor in tensors})
        put(writer, *place, **features)

    monkeypatch.setattr(extract.CacheWriter, "put", noted)
    made = [
        extract.main(**inputs, cache=tmp_path / device, batch_size=1, views=VIEWS, codec="none", device=device)
        for device in ("cuda", "cpu")
    ]
    half = len(given) // 2
    assert given == [{True}] * half + [{False}] * half
    assert checks.diff(*map(Cache, made), atol=1e-4).equal  # copies lie at other addresses, and sums round otherwise


@pytest.mark.parametrize("kind", HEADS)
def test_train_and_evaluate(gpu: None, monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path, kind: str) -> None:
    """A run that is stopped goes on to the weights of one that is not; every view and a mean over views are told."""
    head, settings = HEADS[kind]
    options: dict[str, Any] = {"cache": cache, "head": head, "settings": settings, "device": "cuda"}
    whole = train.main(**options, run=tmp_path / "whole", val_cache=cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", dies_after(Trainer.step, 3))
        with pytest.raises(RuntimeError, match="power cut"):
            train.main(**options, run=tmp_path / "stopped")
    stopped = train.main(**options, run=tmp_path / "stopped")
    first, second = (torch.load(run / "head.pt", weights_only=True) for run in (whole, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first)
    seen: list[bool] = []
    load = evaluate.load_head

    def noted(*args: Any, **options: Any) -> tuple[MaskHead, Any]:
        loaded, run = load(*args, **options)
        seen.extend(parameter.is_cuda for parameter in loaded.parameters())
        return loaded, run

    monkeypatch.setattr(evaluate, "load_head", noted)
    assert evaluate.main(cache=cache, run=whole, device="cuda")["images"] == 6
    assert all(seen)
    assert seen
    if settings.keys() >= BOXES.keys():
        evaluate.main(cache=cache, run=whole, device="cuda", views=["all"])


def dies_after(step: Callable[..., Any], count: int) -> Callable[..., Any]:
    left = iter(range(count))

    def dying(*args: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("power cut")
        return step(*args)

    return dying


@pytest.mark.parametrize("kind", ["box", "oracle"])
def test_references(gpu: None, cache: Path, tmp_path: Path, kind: Any) -> None:
    on_gpu, on_cpu = (
        evaluate.main(cache=cache, run=tmp_path / device, reference=kind, device=device) for device in ("cuda", "cpu")
    )
    assert on_gpu["segm"] == on_cpu["segm"]
    assert on_gpu["segm"]["AP"] > 0


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_segments(gpu: None, tmp_path: Path, task: str) -> None:
    tiny = write_tiny(tmp_path / "data")
    panoptic = write_panoptic(tiny.annotations, without=79)
    cache = extract.main(**tiny.arguments, panoptic=panoptic, cache=tmp_path / "cache", device="cuda")
    run = train.main(cache=cache, head=f"mask2former-{task}", run=tmp_path / "run", settings=QUERIES, device="cuda")
    assert evaluate.main(cache=cache, run=run, device="cuda")["images"] == 8
    assert predicted(tiny, run, tmp_path / "out").exists()


def test_predict_and_report(gpu: None, tiny: Tiny, tmp_path: Path) -> None:
    cache = extract.main(**tiny.arguments, cache=tmp_path / "cache", codec="none", device="cuda")
    run = train.main(cache=cache, head="mask-frozen-detr", run=tmp_path / "run", settings=BOXES, device="cuda")
    evaluate.main(cache=cache, run=run, device="cuda")
    scores = [
        [result["score"] for result in json.loads((out / "results.json").read_text())]
        for out in (
            predicted(tiny, run, tmp_path / "out"),
            predicted(tiny, run, tmp_path / "cpu", device="cpu"),
            predicted(tiny, run, tmp_path / "views", views=["hflip"]),
        )
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert scores[0] != pytest.approx(scores[2], abs=1e-4)
    report.main(runs=[run], cache=cache, out=tmp_path / "report.html")


def predicted(tiny: Tiny, run: Path, out: Path, **options: Any) -> Path:
    options = {"device": "cuda", "weights": tiny.weights, "images": str(tiny.images), **options}
    return predict.main(detector=str(tiny.toml), run=run, out=out, **options)


def test_ablate(gpu: None, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TABLE)
    options: dict[str, Any] = {"ablation": str(tmp_path / "two.toml"), "cache": cache, "settings": SETTINGS}
    outcome = ablate.main(**options, out=tmp_path / "out", device="cuda")
    assert len(outcome.metrics) == 3
    assert not outcome.failures


def test_long_work_beside_a_gpu_says_so(
    gpu: None, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for device in ("cuda", "cpu"):
        train.main(cache=cache, head="unet", run=tmp_path / device, settings={**BOXES, "steps": "1"}, device=device)
        assert ("--device cuda" in capsys.readouterr().err) == (device == "cpu")


@pytest.mark.parametrize("part", ["none", "all"])
def test_live(gpu: None, tmp_path: Path, part: str) -> None:
    annotations = write_set(tmp_path / "drawn", 3, 50)
    inputs = LiveInputs("shapes-tiny", None, annotations.parent / "images", annotations)
    settings = {**BOXES, "finetune": part, "detection_weight": "0" if part == "none" else "1"}
    run = train.main(live=inputs, head="mask-frozen-detr", run=tmp_path / "run", settings=settings, device="cuda")
    assert (run / "head.pt").exists()
