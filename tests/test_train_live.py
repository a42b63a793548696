"""Stage 2 beside the live detector: the weights that the cache gives; a detector that learns, stops, and is used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from power_cut import power_cut
from safetensors.torch import load_file
from tiny import write_tiny
from typer.testing import CliRunner

from pipeline import evaluate, extract, predict, train
from pipeline.cli import app
from pipeline.config import shipped
from pipeline.data.coco import load_coco
from pipeline.data.live import Live
from pipeline.data.sources import Batch, Cached, Stream
from pipeline.detectors.registry import build_detector
from pipeline.errors import PipelineError, UsageError
from pipeline.train import LiveInputs
from pipeline.training.checkpoint import read_run
from pipeline.training.plan import plan
from scripts.make_shapes import write_set

SETTINGS = {
    "steps": "3", "batch_size": "2", "hidden": "16", "roi": "8", "rois_per_image": "6", "log_every": "1",
    "checkpoint_every": "1", "amp": "off",
}  # fmt: skip
FINETUNE = {**SETTINGS, "steps": "2", "finetune": "all", "detection_weight": "1", "lr": "1e-3"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> LiveInputs:
    """Three drawings of unequal sizes and the embedded detector."""
    annotations = write_set(tmp_path_factory.mktemp("live") / "drawn", 3, 50)
    return LiveInputs("shapes-tiny", None, annotations.parent / "images", annotations)


def cached(inputs: LiveInputs, path: Path, **changes: Any) -> Path:
    return extract.main(**{**vars(inputs), **changes}, cache=path, codec="none")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "head.pt", weights_only=True)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finetuned(inputs: LiveInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finetuned") / "run"
    return train.main(live=inputs, head="mask-frozen-detr", run=run, settings=FINETUNE)


def test_the_weights_are_those_that_the_cache_gives(inputs: LiveInputs, tmp_path: Path) -> None:
    """Over more than one pass, in batches of images of unequal sizes."""
    cache = cached(inputs, tmp_path / "cache")
    sizes = {Cached(cache).batch([(i, "orig")]).features.c1.shape for i in range(3)}
    assert len(sizes) > 1
    one = train.main(cache=cache, head="mask-frozen-detr", run=tmp_path / "cached", settings=SETTINGS)
    other = train.main(live=inputs, head="mask-frozen-detr", run=tmp_path / "live", settings=SETTINGS)
    assert equal(weights(one), weights(other))
    assert read_run(one).fingerprint == read_run(other).fingerprint
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)
    ]
    assert losses[0] == losses[1]
    evaluate.main(cache=cache, run=other)


def test_the_order_is_that_of_the_cache_also_after_a_stop(inputs: LiveInputs, tmp_path: Path) -> None:
    source = Cached(cached(inputs, tmp_path / "cache"))
    detector = build_detector("shapes-tiny")
    live = Live(detector, load_coco(inputs.annotations, inputs.images), source.spec)
    options: dict[str, Any] = {"views": ("orig",), "indices": [0, 1, 2], "seed": 3}
    streams: list[Stream] = [one.stream(2, **options) for one in (source, live)]
    expected, found = ([seen(batch) for _, batch in zip(range(5), stream, strict=False)] for stream in streams)
    assert expected == found
    assert streams[0].state_dict() == streams[1].state_dict()
    for stream in streams:
        stream.seek(3)
        assert [seen(batch) for _, batch in zip(range(2), stream, strict=False)] == expected[3:5]


def seen(batch: Batch) -> list[int]:
    return [info.id for info in batch.infos]


@pytest.mark.parametrize("part", ["transformer", "all"])
def test_only_the_part_that_is_to_learn_changes_and_never_a_batch_norm(
    inputs: LiveInputs, tmp_path: Path, part: str
) -> None:
    settings = {**FINETUNE, "steps": "1", "finetune": part}
    run = train.main(live=inputs, head="mask-frozen-detr", run=tmp_path / "run", settings=settings)
    before = build_detector("shapes-tiny").network.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    after = load_file(run / "detector.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    norms = {name for name in before if name.startswith("backbone.") and before[name].ndim <= 1}
    backbone = {name for name in before if name.startswith("backbone.")} - norms
    assert not changed & norms
    assert (changed & backbone == backbone) if part == "all" else not changed & backbone
    for kind in ("encoder.input_proj.", "encoder.layers.", "layers.", "class_embed.", "bbox_embed.", "proposals."):
        assert any(name.startswith(kind) for name in changed), kind
    steps = [(after[name] - before[name]).abs().max().item() for name in changed]
    assert max(steps) == pytest.approx(1e-4, rel=0.1)  # AdamW's first step is the rate: a tenth of the head's


def test_masks_alone_teach_the_features_but_not_the_boxes(inputs: LiveInputs, tmp_path: Path) -> None:
    settings = {**FINETUNE, "steps": "1", "detection_weight": "0"}
    run = train.main(live=inputs, head="mask-frozen-detr", run=tmp_path / "run", settings=settings)
    before = build_detector("shapes-tiny").network.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    after = load_file(run / "detector.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"encoder.layers.0.linear1.weight", "layers.2.linear2.weight", "backbone.stem.0.0.weight"} <= changed
    assert not any(name.startswith(("bbox_embed.", "class_embed.", "proposals.")) for name in changed)


def test_a_detector_that_learns_sees_as_before(inputs: LiveInputs) -> None:
    detector = build_detector("shapes-tiny")
    images = torch.randn(2, 3, 160, 192, generator=torch.Generator().manual_seed(0))
    frozen = detector.detect(images)
    detector.let_learn("all")  # pyright: ignore[reportAttributeAccessIssue]
    features, outputs = detector.learn(images)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(frozen.labels, features.labels)
    pairs = {name: (frozen.maps[name], features.maps[name]) for name in frozen.maps}
    pairs |= {name: (getattr(frozen, name), getattr(features, name)) for name in ("queries", "boxes", "scores")}
    for name, (one, other) in pairs.items():  # deformable attention rounds differently where gradients are asked for
        torch.testing.assert_close(
            one, other.detach(), rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert features.queries.requires_grad
    assert features.c1.requires_grad
    assert not features.boxes.requires_grad
    assert sum(len(output.boxes[-1]) for output in outputs) == 2
    assert not detector.detect(images).queries.requires_grad


def test_stopped_and_continued_equals_uninterrupted(inputs: LiveInputs, finetuned: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"live": inputs, "head": "mask-frozen-detr", "run": tmp_path / "run"}
    with power_cut(after=1):
        train.main(**arguments, settings=FINETUNE)
    run = train.main(**arguments, settings=FINETUNE)
    assert equal(weights(run), weights(finetuned))
    assert (run / "detector.safetensors").read_bytes() == (finetuned / "detector.safetensors").read_bytes()


def test_the_run_belongs_to_the_detector_it_has_trained(inputs: LiveInputs, finetuned: Path, tmp_path: Path) -> None:
    cache = cached(inputs, tmp_path / "new", weights=finetuned / "detector.safetensors")
    assert 0 <= evaluate.main(cache=cache, run=finetuned)["segm"]["AP"] <= 100
    with pytest.raises(PipelineError, match="weights_sha256"):
        evaluate.main(cache=cached(inputs, tmp_path / "old"), run=finetuned)
    options: dict[str, Any] = {"detector": "shapes-tiny", "run": finetuned, "images": str(inputs.images)}
    out = predict.main(**options, weights=finetuned / "detector.safetensors", out=tmp_path / "masks")
    assert json.loads((out / "results.json").read_text())
    # the same command again finds its run, though the detector in it is another by now
    assert train.main(live=inputs, head="mask-frozen-detr", run=finetuned, settings=FINETUNE) == finetuned


def test_averaged_weights_are_those_of_head_and_detector(inputs: LiveInputs, finetuned: Path, tmp_path: Path) -> None:
    settings = {**FINETUNE, "ema": "0.9"}
    run = train.main(live=inputs, head="mask-frozen-detr", run=tmp_path / "run", settings=settings)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert equal(state["averaged_detector"], load_file(run / "detector.safetensors"))
    assert equal(state["detector"], load_file(finetuned / "detector.safetensors"))
    assert not equal(state["averaged_detector"], state["detector"])


def test_ablate_on_a_cache_leaves_out_what_trains_the_detector(
    inputs: LiveInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Cached(cached(inputs, tmp_path / "cache"))
    name = str(source.spec.source["name"])
    table = tmp_path / "table.toml"
    table.write_text(shipped("ablations")["table11"].read_text().replace("hdetr-r50", name))
    _, members = plan(str(table), source, tmp_path / "out", steps="3", seeds=(), settings={})
    assert [member.row.name for member in members] == ["H-DETR R50"]
    words = capsys.readouterr().err
    assert "they are rows of other detectors" in words
    assert "they train the detector too: 'H-DETR R50, without the encoders, partial fine-tune'" in words
    assert "train --live" in words
    with pytest.raises(PipelineError, match="every row trains the detector too"):
        plan(str(table), source, tmp_path / "out", steps="3", seeds=(), settings={"finetune": "all"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--live"], "--live needs the detector and its images"),
        (["--live", "--cache", "c"], "--live takes the place of a cache"),
        (["--cache", "c", "--detector", "shapes-tiny"], "a cache takes the place of detector"),
        ([], "train takes a cache"),
    ],
)
def test_half_of_one_or_both_is_misuse(words: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--head", "unet", "--run", str(tmp_path / "run"), *words])
    assert result.exit_code == 2
    assert message in result.output


def test_the_command_line_trains_beside_the_live_detector(inputs: LiveInputs, tmp_path: Path) -> None:
    words = ["train", "--live", "--head", "unet", "--run", str(tmp_path / "run"), "--detector", inputs.detector]
    words += ["--images", str(inputs.images), "--annotations", str(inputs.annotations), "--steps", "1", "hidden=16"]
    result = CliRunner().invoke(app, [*words, "roi=8", "batch_size=1", "warmup=0", "amp=off"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "head.pt").exists()
    assert not (tmp_path / "run" / "detector.safetensors").exists()


def test_a_cache_cannot_train_the_detector_and_onnx_cannot_learn(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "data")
    options: dict[str, Any] = {"head": "mask-frozen-detr", "run": tmp_path / "run"}
    with pytest.raises(PipelineError, match="finetune=all trains the detector") as error:
        train.main(**options, cache=tmp_path / "cache", settings=FINETUNE)
    assert "--live" in error.value.hint
    onnx = LiveInputs(**tiny.arguments)
    with pytest.raises(PipelineError, match="'tiny' cannot be trained"):
        train.main(**options, live=onnx, settings=FINETUNE)
    with pytest.raises(UsageError, match="a cache or the live detector"):
        train.main(**options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(PipelineError, match="detection_weight goes with finetune"):
        train.main(**options, live=onnx, settings={"detection_weight": "1"})
