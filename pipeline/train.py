"""Stage 2: cache -> trained head. Nothing but the cache is opened, unless the live detector takes its place."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import evaluate
from .data.coco import load_coco
from .data.live import Live
from .data.sources import Cached, FeatureSource
from .data.views import check_view
from .detectors.base import LearningDetector
from .detectors.device import tell_unused_gpu
from .detectors.registry import build_detector
from .errors import PipelineError, UsageError
from .evaluation import evaluated, evaluation_identity, images_to_evaluate
from .extract import cache_spec, check_categories
from .heads.registry import build_head
from .training.checkpoint import (
    DETECTOR,
    HEAD,
    Run,
    check_claim,
    check_features,
    claim_run,
    code_version,
    describe_run,
    save_tensors,
)
from .training.checks import check_training
from .training.log import LOG, logged
from .training.recipe import Recipe, load_recipe, override
from .training.together import train_together
from .training.trainer import Trainer
from .training.validation import Validation


@dataclasses.dataclass(frozen=True)
class LiveInputs:
    """What takes the place of a cache where the detector computes at each step; as `extract` takes them."""

    detector: str
    weights: Path | None
    images: Path
    annotations: Path


def main(
    *,
    cache: Path | None = None,
    live: LiveInputs | None = None,
    head: str,
    run: Path,
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
    val_cache: Path | None = None,
) -> Path:
    """Train a head on a cache or, several times slower, beside the live detector; returns the run directory.

    head: a name of `configs/heads/` or a TOML. settings: fields of the head or its training that replace the TOML's.
    val_cache: what `evaluate_every` evaluates on; best.pt of the run then has the best weights, head.pt the last.
    The same command again continues a run that was stopped, and ends where it would have ended without the stop. With
    `finetune` the detector learns too, and the run has its weights at the end.
    """
    recipe = override(load_recipe(head), settings or {})
    if (cache is None) == (live is None):
        raise UsageError("train takes a cache or the live detector", "--cache DIR, or --live with what `extract` takes")
    source: FeatureSource
    if cache is not None:
        refuse_finetune(recipe, f"cache {cache}")
        source, learner = Cached(cache, device), None
    else:
        assert live is not None
        source = open_live(live, recipe, device)
        learner = source.learner
    description = describe_run(recipe, source.spec)
    judge = _judge(description, val_cache, device)
    check_claim(run, description)
    check_training(recipe, source)
    validation = Validation(judge, run, description) if judge is not None and recipe.train.evaluate_every else None
    claim_run(run, description)
    if (run / HEAD).exists():
        print(f"{run} is trained to its end; evaluate it, or give another --run", file=sys.stderr)
        return run
    with logged(run / LOG, " ".join(code_version().values())):
        tell_unused_gpu(device)
        _train(source, run, description, learner, validation)
    return run


def figures(run: Path, val_cache: Path, device: str = "cpu") -> dict[str, Any]:
    """The metrics of a trained run, as `evaluate` writes them; an evaluation after its last step is not done again."""
    judge = Cached(val_cache, device)
    identity = evaluation_identity(judge, 0, images_to_evaluate(judge, 0))
    return evaluated(run, identity) or evaluate.main(cache=val_cache, run=run, device=device)


def _train(
    source: FeatureSource,
    run: Path,
    description: Run,
    learner: LearningDetector | None,
    validation: Validation | None,
) -> None:
    """From where the run stands to its head."""
    recipe = description.recipe
    print(f"head {recipe.name}: {_changes(recipe.head)}\ntraining: {_changes(recipe.train)}", file=sys.stderr)
    model = build_head(recipe.family, recipe.head, description.widths)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        print(f"'{recipe.name}' has no parameters: there is nothing to train", file=sys.stderr)
        save_tensors(run / HEAD, model.state_dict())
        return
    train_together(source, [Trainer(run, description, source.device, learner, validation)])
    if learner is not None:
        print(f"the detector learned too: evaluate on a cache of --weights {run / DETECTOR}", file=sys.stderr)


def _judge(run: Run, val_cache: Path | None, device: str) -> Cached | None:
    """What to evaluate on, on the way; raises PipelineError before hours of training rather than after them."""
    if run.recipe.train.evaluate_every and val_cache is None:
        raise UsageError("evaluate_every needs a cache to evaluate on", "--val-cache DIR, or evaluate_every=0")
    if val_cache is None:
        return None
    judge = Cached(val_cache, device)
    if run.recipe.train.finetune == "none":  # else the head ends with other features than there are by now
        check_features(run, judge.cache.spec, f"--val-cache {val_cache}")
    judge.finished(judge.cache.views[:1])  # raises where there is none
    return judge


def live_inputs(
    live: bool,
    cache: Path | None,
    detector: str | None,
    weights: Path | None,
    images: Path | None,
    annotations: Path | None,
) -> LiveInputs | None:
    """The words of the command line, None for a training on a cache; raises UsageError for half of one or both."""
    if not live:
        if cache is None:
            raise UsageError("train takes a cache", "--cache DIR, or --live with what `extract` takes")
        if any(word is not None for word in (detector, weights, images, annotations)):
            raise UsageError("a cache takes the place of detector, weights, images and annotations", "leave them out")
        return None
    if cache is not None:
        raise UsageError("--live takes the place of a cache", "leave out --cache or --live")
    if detector is None or images is None or annotations is None:
        raise UsageError("--live needs the detector and its images", "--detector NAME --images DIR --annotations JSON")
    return LiveInputs(detector, weights, images, annotations)


def open_live(inputs: LiveInputs, recipe: Recipe, device: str) -> Live:
    """The live detector on its images, ready to learn where the recipe asks for that."""
    model = build_detector(inputs.detector, inputs.weights, device=device)
    coco = load_coco(inputs.annotations, inputs.images)
    check_categories(model, coco)
    views = [check_view(view) for view in recipe.train.views or ("orig",)]
    live = Live(model, coco, cache_spec(model, coco, "none", views), device)
    if recipe.train.finetune != "none":
        if not isinstance(model, LearningDetector):
            raise PipelineError(
                f"'{model.name}' cannot be trained, only run: finetune={recipe.train.finetune}",
                "finetune=none, or a detector of kind 'hdetr' or 'dino'",
            )
        live.learner = model
    return live


def refuse_finetune(recipe: Recipe, where: str) -> None:
    """Raise PipelineError where features that never change are to come from a detector that learns."""
    if recipe.train.finetune != "none":
        raise PipelineError(
            f"finetune={recipe.train.finetune} trains the detector, and {where} holds what it gave before",
            "python -m pipeline train --live --detector NAME --weights FILE --images DIR --annotations JSON ..., "
            "or finetune=none",
        )


def _changes(table: Any) -> str:
    """The settings that are not the defaults; config.json of the run holds them all."""
    default = type(table)()
    names = [field.name for field in dataclasses.fields(table)]
    changed = [f"{name}={getattr(table, name)}" for name in names if getattr(table, name) != getattr(default, name)]
    return ", ".join(changed) or "all defaults"
