"""Stage 2: cache -> trained head. Only the cache is opened: no image, annotation file or detector."""

import copy
import dataclasses
import math
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.progress import Progress

from .data.sources import Batch, Cached
from .errors import PipelineError
from .heads.base import MaskHead, Widths
from .heads.registry import build_head
from .interrupt import noted_interrupt
from .training.checkpoint import CHECKPOINT, HEAD, Run, read_run, save_tensors, write_run
from .training.config import TrainConfig, learning_rate
from .training.criterion import loss_terms
from .training.recipe import load_recipe, override
from .training.targets import build_targets
from .training.track import Track, peak_memory


def main(
    *,
    cache: Path,
    head: str,
    run: Path,
    settings: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Path:
    """Train a head on a cache and leave it in the run directory, which is returned.

    head: a name of `configs/heads/` or a TOML. settings: fields of the head or its training that replace the TOML's.
    The same command again continues a run that was stopped, and ends where it would have ended without the stop.
    """
    source = Cached(cache, device)
    spec = source.cache.spec
    recipe = override(load_recipe(head), settings or {})
    description = Run(
        recipe=recipe,
        widths=Widths.of_cache(spec),
        source=dict(spec.source),
        categories=source.categories,
        fingerprint=spec.fingerprint,
        versions={"python": platform.python_version(), "torch": torch.__version__, "featcache": _version()},
    )
    _claim(run, description)
    if (run / HEAD).exists():
        print(f"{run} is trained to its end; evaluate it, or give another --run", file=sys.stderr)
        return run
    print(f"head {recipe.name}: {_changes(recipe.head)}\ntraining: {_changes(recipe.train)}", file=sys.stderr)
    torch.manual_seed(recipe.train.seed)
    model = (
        build_head(recipe.family, recipe.head, description.widths)
        .to(torch.device(device))
        .to(memory_format=torch.channels_last)
    )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        print(f"'{recipe.name}' has no parameters: there is nothing to train", file=sys.stderr)
        save_tensors(run / HEAD, model.state_dict())
        return run
    _Training(source, model, recipe.train, run, torch.device(device)).run_to_end()
    return run


class _Training:
    """The state that a checkpoint holds, and the loop that moves it."""

    def __init__(self, source: Cached, model: MaskHead, config: TrainConfig, run: Path, device: torch.device) -> None:
        self.model, self.config, self.run, self.device = model, config, run, device
        self.categories = source.categories
        self.step = 0
        self.averaged = copy.deepcopy(model) if config.ema else None
        self.optimizer = torch.optim.AdamW(_parameter_groups(model, config), lr=config.lr, betas=config.betas)
        self.generator = torch.Generator().manual_seed(config.seed)  # of boxes and points; on the CPU on any device
        self.stream = source.stream(
            config.batch_size,
            views=config.views or source.cache.views,
            indices=training_indices(source, config),
            seed=config.seed,
        )
        if (run / CHECKPOINT).exists():
            self._restore()
        self.track = Track(run, self.step)

    def run_to_end(self) -> None:
        """All steps that are left; writes the head when the last is done."""
        config = self.config
        batches = iter(self.stream)
        waited, started, images = 0.0, time.monotonic(), 0
        with noted_interrupt() as stop, Progress(config.steps, "steps", done=self.step) as progress:
            while self.step < config.steps:
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                terms = self._update(batch)
                self.step += 1
                images += len(batch)
                facts = ""
                if self.step % config.log_every == 0 or self.step == config.steps:
                    seconds = time.monotonic() - started
                    numbers = self._numbers(terms, images / seconds, waited / seconds)
                    self.track.log(numbers)
                    facts = _readable(numbers)
                    waited, started, images = 0.0, time.monotonic(), 0
                progress.update(1, facts)
                if self.step % config.checkpoint_every == 0 or self.step == config.steps or stop.is_set():
                    self._save()
                if stop.is_set() and self.step < config.steps:
                    raise PipelineError(
                        f"stopped by Ctrl-C after step {self.step} of {config.steps}, saved in {self.run / CHECKPOINT}",
                        "run the same command again to go on",
                    )
        result = self.averaged if self.averaged is not None else self.model
        save_tensors(self.run / HEAD, result.state_dict())

    def _update(self, batch: Batch) -> dict[str, float]:
        """One step of the optimiser; returns the loss terms."""
        config = self.config
        targets = build_targets(batch, self.categories, config, self.generator)
        if not len(targets):
            return {}
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with _autocast(config, self.device):
            output = self.model(batch.features, targets.boxes, targets.queries)
        terms = loss_terms(output, targets, config, self.generator)
        loss = torch.stack(list(terms.values())).sum()
        values = {name: term.item() for name, term in terms.items()}
        if not math.isfinite(sum(values.values())):
            ids = [info.id for info in batch.infos]
            raise PipelineError(
                f"the loss is not finite at step {self.step}: {values}, images {ids}",
                f"lower the learning rate: lr={config.lr / 3:.1e}; the last checkpoint in {self.run} is kept",
            )
        self.optimizer.zero_grad()
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self._average()
        return {"loss": sum(values.values()), **values}

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential average of the weights; short at the start, where the weights of before are worth little."""
        if self.averaged is None:
            return
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        for mean, new in zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True):
            mean.lerp_(new, 1 - decay) if mean.is_floating_point() else mean.copy_(new)

    def _numbers(self, terms: dict[str, float], images_per_second: float, waiting: float) -> dict[str, Any]:
        return {
            "step": self.step,
            **terms,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": images_per_second,
            "data_wait": waiting,
            "memory_bytes": peak_memory(self.device),
        }

    def _save(self) -> None:
        averaged = self.averaged.state_dict() if self.averaged is not None else None
        random: dict[str, Tensor] = {"boxes": self.generator.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        content = {
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": averaged,
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state_dict(),
            "random": random,
        }
        save_tensors(self.run / CHECKPOINT, content)

    def _restore(self) -> None:
        content = torch.load(self.run / CHECKPOINT, map_location="cpu", weights_only=True)
        self.step = content["step"]
        self.model.load_state_dict(content["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(content["averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.stream.load_state_dict(content["stream"])
        self.generator.set_state(content["random"]["boxes"])
        torch.set_rng_state(content["random"]["torch"])
        if "cuda" in content["random"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(content["random"]["cuda"], self.device)


def training_indices(source: Cached, config: TrainConfig) -> list[int]:
    """Images to learn from: extracted in every view asked for, and not held out."""
    kept = [i for i in source.finished(config.views or source.cache.views) if not config.holds_out(i)]
    if not kept:
        raise PipelineError(
            f"holdout={config.holdout} leaves no image of {source.cache.path} to learn from",
            "give a larger holdout, or 0 for none",
        )
    return kept


def _claim(run: Path, description: Run) -> None:
    """Start the run directory, or make sure that the one there is of the same training."""
    if not (run / "config.json").exists():
        write_run(run, description)
        return
    there = read_run(run)
    for field in ("recipe", "fingerprint", "widths"):
        if getattr(there, field) != getattr(description, field):
            raise PipelineError(
                f"{run} is a run with another {field}: {getattr(there, field)}, not {getattr(description, field)}",
                "give another --run, or the settings of that run to continue it",
            )


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.ndim > 1 or config.decay_norms]
    others = [p for p in model.parameters() if p.ndim <= 1 and not config.decay_norms]
    groups = [(weights, config.weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if config.amp == "bf16" else nullcontext()


def _readable(numbers: Mapping[str, Any]) -> str:
    """The line of a step."""
    terms = [f"{key} {numbers[key]:.3f}" for key in ("loss", "bce", "dice", "scoring") if key in numbers]
    speed = f"{numbers['images_per_second']:.1f} images/s, waiting {numbers['data_wait']:.0%}"
    return ", ".join([*terms, f"lr {numbers['lr']:.1e}", speed, f"{numbers['memory_bytes'] / 1e9:.1f} GB"])


def _changes(table: Any) -> str:
    """The settings that are not the defaults; config.json of the run holds them all."""
    default = type(table)()
    names = [field.name for field in dataclasses.fields(table)]
    changed = [f"{name}={getattr(table, name)}" for name in names if getattr(table, name) != getattr(default, name)]
    return ", ".join(changed) or "all defaults"


def _version() -> str:
    try:
        return version("featcache")
    except PackageNotFoundError:
        return "not installed"
