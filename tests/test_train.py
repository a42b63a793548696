"""Stage 2 on a small cache: it learns, from the cache alone, and a run that was stopped ends as one that was not."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from discs import write_discs
from power_cut import power_cut
from tiny import write_tiny

from featcache import Cache, maintain
from pipeline import evaluate, extract, train
from pipeline.data.sources import Cached
from pipeline.errors import PipelineError
from pipeline.heads.base import HeadOutput
from pipeline.heads.mask_frozen_detr import MaskFrozenDetr
from pipeline.training.checkpoint import claim_run, describe_run, load_head
from pipeline.training.recipe import load_recipe, override
from pipeline.training.trainer import Trainer

SETTINGS = {"steps": "12", "warmup": "0", "batch_size": "2", "roi": "8", "log_every": "4", "checkpoint_every": "5"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("train") / "cache")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "head.pt", weights_only=True)


def test_learns_the_masks(cache: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "steps": "150", "batch_size": "6", "hidden": "16", "amp": "off", "roi": "16", "ema": "0.9"}
    run = train.main(cache=cache, head="unet", run=tmp_path / "run", settings=settings)
    metrics = evaluate.main(cache=cache, run=run)
    assert metrics["bbox"]["AP"] == pytest.approx(100)
    assert metrics["segm"]["AP"] > 60
    assert metrics["mask_iou"] > 0.8
    assert json.loads((run / "metrics.json").read_text())["segm"]["AP"] == metrics["segm"]["AP"]


@pytest.mark.parametrize("head", ["mask-frozen-detr", "unet"])
def test_stopped_and_continued_equals_uninterrupted(cache: Path, tmp_path: Path, head: str) -> None:
    """Ten steps, a stop, and the rest: the same weights and the same curve, for every state there is to lose."""
    settings = {**SETTINGS, "hidden": "16", "ema": "0.9", "dropout": "0.1", "jitter": "0.1", "amp": "off"}
    whole = train.main(cache=cache, head=head, run=tmp_path / "whole", settings=settings)
    stopped = tmp_path / "stopped"
    with power_cut(after=7):
        train.main(cache=cache, head=head, run=stopped, settings=settings)
    assert not (stopped / "head.pt").exists()
    train.main(cache=cache, head=head, run=stopped, settings=settings)
    first, second = weights(whole), weights(stopped)
    assert all(torch.equal(first[name], second[name]) for name in first)
    curves = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, stopped)
    ]
    assert [line["step"] for line in curves[0]] == [4, 8, 12]
    assert [[line["step"], line["loss"]] for line in curves[0]] == [[line["step"], line["loss"]] for line in curves[1]]


def test_a_batch_in_parts_gives_the_weights_of_the_whole(cache: Path, tmp_path: Path) -> None:
    """Images weigh by their boxes, also where the last part is smaller and the images differ in size."""
    settings = {**SETTINGS, "hidden": "16", "amp": "off", "loss": "full", "steps": "2", "batch_size": "5"}
    heads = [
        weights(train.main(cache=cache, head="unet", run=tmp_path / size, settings={**settings, "micro_batch": size}))
        for size in ("0", "2")
    ]
    start = weights(train.main(cache=cache, head="unet", run=tmp_path / "x", settings={**settings, "lr": "1e-30"}))
    moved = 0.0
    for name, value in heads[0].items():
        torch.testing.assert_close(heads[1][name], value, rtol=1e-3, atol=2e-5)
        moved = max(moved, (value - start[name]).abs().max().item())
    assert moved > 1e-3


@pytest.mark.parametrize(
    ("maps", "head"),
    [
        ("e16, e32", {"c1": "false", "neck": "false", "box_encoder": "convnext"}),
        ("e16", {"c1": "false", "neck": "false", "image_encoder": "none"}),
        ("c1, e16", {"image_encoder": "convnext", "neck_path": "full"}),
    ],
)
def test_what_the_head_does_not_read_changes_nothing(
    cache: Path, tmp_path: Path, maps: str, head: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "hidden": "16", "steps": "4", "query_encoder": "[]", "mask_scoring": "false", **head}
    few = train.main(cache=cache, head="mask-frozen-detr", run=tmp_path / "few", settings=settings)
    assert f"reading {maps} of 3 maps\n" in (few / "log.txt").read_text()
    metrics = evaluate.main(cache=cache, run=few)
    with monkeypatch.context() as patch:
        patch.setattr(MaskFrozenDetr, "maps_read", property(lambda self: None, lambda self, value: None))
        all_of_them = train.main(cache=cache, head="mask-frozen-detr", run=tmp_path / "all", settings=settings)
        assert "reading" not in (all_of_them / "log.txt").read_text()
        assert evaluate.main(cache=cache, run=all_of_them) == metrics
    one, other = weights(few), weights(all_of_them)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (few / "results.json").read_bytes() == (all_of_them / "results.json").read_bytes()


def test_needs_neither_images_nor_annotations_nor_detector(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "data")
    cache = extract.main(**tiny.arguments, cache=tmp_path / "cache", views=("orig", "hflip"))
    shutil.rmtree(tmp_path / "data")
    assert not any(path.exists() for path in (tiny.images, tiny.annotations, tiny.weights, tiny.toml))
    run = train.main(cache=cache, head="unet", run=tmp_path / "run", settings={**SETTINGS, "hidden": "16"})
    metrics = evaluate.main(cache=cache, run=run)
    assert metrics["images"] == 8
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert {"image_id", "category_id", "segmentation", "score"} <= set(
        json.loads((run / "results.json").read_text())[0]
    )


def test_a_run_of_other_settings_is_not_continued(cache: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "hidden": "16", "steps": "1"}
    run = train.main(cache=cache, head="unet", run=tmp_path / "run", settings=settings)
    before = weights(run)
    with pytest.raises(PipelineError) as caught:
        train.main(cache=cache, head="unet", run=run, settings={**settings, "lr": "0.5", "hidden": "32"})
    listing = "hidden: run has 16, now 32; lr: run has 0.001, now 0.5"
    assert caught.value.message == f"{run} is a run of another training ({listing})"
    train.main(cache=cache, head="unet", run=run, settings=settings)  # trained to its end: nothing to do
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())


def test_baseline_needs_no_training(cache: Path, tmp_path: Path) -> None:
    run = train.main(cache=cache, head="baseline", run=tmp_path / "run")
    head, _ = load_head(run)
    assert not list(head.parameters())
    assert 0 <= evaluate.main(cache=cache, run=run)["segm"]["AP"] <= 100


def test_held_out_images_are_for_choosing(cache: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "hidden": "16", "steps": "1", "holdout": "3"}
    run = train.main(cache=cache, head="unet", run=tmp_path / "run", settings=settings)
    assert evaluate.main(cache=cache, run=run, holdout=3)["images"] == 2
    assert evaluate.main(cache=cache, run=run)["images"] == 6
    with pytest.raises(PipelineError, match="has seen images"):
        evaluate.main(cache=cache, run=run, holdout=2)


def test_nothing_to_learn_from_is_an_error(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "one"
    maintain.run(maintain.plan_copy(Cache(cache), source, image_ids=[10]))
    with pytest.raises(PipelineError, match="holdout=2 leaves no image"):
        train.main(cache=source, head="unet", run=tmp_path / "run", settings={**SETTINGS, "holdout": "2"})
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_all_there_is_warns(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SETTINGS, "hidden": "16", "steps": "1", "batch_size": "9", "holdout": "3"}
    train.main(cache=cache, head="unet", run=tmp_path / "run", settings=settings)
    words = f"warning: batch_size=9, but cache {cache} has only 8 pairs of image and view to learn from"
    assert words in capsys.readouterr().err
    train.main(cache=cache, head="unet", run=tmp_path / "fits", settings={**settings, "batch_size": "8"})
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": '["foo"]'}, "unknown view 'foo'"),
        ({"views": '["crop1"]'}, "the cache holds no view crop1, only orig, hflip"),
        ({"encoder_layer": "9"}, "the features hold no maps of encoder layer 9"),
        ({"evaluate_every": "1"}, "evaluate_every needs a cache to evaluate on"),
    ],
)
def test_a_refused_training_leaves_the_run_directory_free(
    cache: Path, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    run, right = tmp_path / "run", {**SETTINGS, "hidden": "16", "steps": "1"}
    with pytest.raises(PipelineError, match=message):
        train.main(cache=cache, head="unet", run=run, settings={**right, **settings})
    assert not run.exists()
    train.main(cache=cache, head="unet", run=run, settings=right)


def test_a_loss_that_is_not_finite_stops_with_terms_and_images(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"step \d+.*bce.*images \[1"):
        train.main(cache=cache, head="unet", run=tmp_path / "run", settings={**SETTINGS, "hidden": "16", "lr": "1e30"})


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steep(output: HeadOutput, *_: object) -> dict[str, torch.Tensor]:
        return {"bce": (output.mask_logits * 0).sum().sqrt()}  # 0, and infinitely steep there

    monkeypatch.setattr("pipeline.heads.base.loss_terms", steep)
    with pytest.raises(PipelineError, match=r"gradient is not finite at step 0: .*'bce': 0.0.*images \[1"):
        train.main(cache=cache, head="unet", run=tmp_path / "run", settings={**SETTINGS, "hidden": "16"})
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_weights_of_another_head_are_refused(cache: Path, tmp_path: Path) -> None:
    run = train.main(
        cache=cache, head="unet", run=tmp_path / "run", settings={**SETTINGS, "hidden": "16", "steps": "1"}
    )
    weights = torch.load(run / "head.pt", weights_only=True)
    weights["of_before"] = weights.pop(next(iter(weights)))
    torch.save(weights, run / "head.pt")
    with pytest.raises(PipelineError, match=r"head.pt does not fit .*of_before"):
        evaluate.main(cache=cache, run=run)


def test_features_of_another_detector_are_refused_by_field(cache: Path, tmp_path: Path) -> None:
    run = train.main(
        cache=cache, head="unet", run=tmp_path / "run", settings={**SETTINGS, "hidden": "16", "steps": "1"}
    )
    config = json.loads((run / "config.json").read_text())
    config["source"]["name"] = "another"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(PipelineError, match=r"name is 'toy'.*'another'"):
        evaluate.main(cache=cache, run=run)


def test_a_released_trainer_holds_no_weights(cache: Path, tmp_path: Path) -> None:
    """The heads that go on have their memory."""
    source = Cached(cache)
    run = describe_run(override(load_recipe("unet"), {**SETTINGS, "hidden": "16", "ema": "0.9"}), source.spec)
    claim_run(tmp_path / "run", run)
    trainer = Trainer(tmp_path / "run", run, source.device)
    trainer.step(source.batch([(0, "orig"), (1, "orig")]))
    models = [*trainer.learning.values(), *trainer.averages.values()]
    held = [weakref.ref(parameter) for model in models for parameter in model.parameters()]
    trainer.release()
    gc.collect()
    assert held
    assert not any(parameter() is not None for parameter in held)


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_memory_that_runs_out_outside_of_torch_is_told_as_such(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    def failing(*_: object) -> object:
        raise RuntimeError(words)

    monkeypatch.setattr(Trainer, "_update", failing)
    with pytest.raises(PipelineError, match="out of memory at step 0"):
        train.main(cache=cache, head="unet", run=tmp_path / "run", settings=SETTINGS)
