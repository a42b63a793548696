"""The training of one head: all that its checkpoint holds, moved by one batch at a time."""

import copy
import math
import time
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..data.sources import Batch
from ..detectors.base import LearningDetector
from ..errors import PipelineError
from ..heads.base import MaskHead
from ..heads.registry import build_head
from .checkpoint import CHECKPOINT, HEAD, Run, save_tensors, write_detector
from .config import TrainConfig, learning_rate
from .detection import detection_terms
from .meter import Meter
from .randomness import OwnRandom
from .track import TERMS, Track
from .validation import Validation

NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a RuntimeError says where it was this machine's memory, or a GPU's but not torch's share of it."""


class Trainer:
    """A head with its optimiser, averaged weights and random streams; nothing of it depends on who trains beside it.

    Opens the run directory of `write_run`, and goes on from the checkpoint there if there is one.
    """

    def __init__(
        self,
        folder: Path,
        run: Run,
        device: torch.device,
        detector: LearningDetector | None = None,
        validation: Validation | None = None,
    ) -> None:
        """detector: the one that learns too, where `finetune` asks for that; the batches must come from it.
        validation: where `evaluate_every` asks for that.
        """
        self.folder, self.recipe, self.device = folder, run.recipe, device
        self.config: TrainConfig = run.recipe.train
        self.categories: Any = run.categories
        self.steps_done = 0
        self.place: dict[str, int] | None = None
        """`Stream.state_dict` of the checkpoint that this went on from, None at the start."""
        self.random = OwnRandom(self.config.seed, device)
        with self.random.entered():
            model = build_head(run.recipe.family, run.recipe.head, run.widths)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.detector = detector
        if detector is not None:
            detector.let_learn(self.config.finetune)
        self.learning: dict[str, nn.Module] = {"model": self.model, **_network(detector)}
        """By their names in the checkpoint."""
        self.averages = {name: copy.deepcopy(one) for name, one in self.learning.items()} if self.config.ema else {}
        groups = _parameter_groups(self.model, self.config, 1.0)
        if detector is not None:
            groups += _parameter_groups(detector.network, self.config, self.config.detector_lr_ratio)
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, betas=self.config.betas)
        self.generator = torch.Generator().manual_seed(self.config.seed)  # of boxes and points; on the CPU, whatever
        if (folder / CHECKPOINT).exists():
            self._restore()
        self.meter = Meter(device, self._bytes)
        self.latest: dict[str, Any] = {}
        """What the training last wrote to metrics.jsonl."""
        self._validation = validation
        self._track = Track(folder, self.steps_done)
        self._opened_at = self.steps_done
        self._since: _Since | None = None  # counted from the first batch asked for, not from here

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.steps_done >= self.config.steps

    def step(self, batch: Batch, waited: float = 0.0) -> dict[str, float]:
        """One step of the optimiser on a batch; returns the terms of the loss, none where no box has an object.

        waited: seconds that the batch was waited for, for the log. Raises PipelineError where the loss is not finite
        or the memory does not suffice; the checkpoint is as it was.
        """
        self._since = self._since or _Since(waited)
        second = self.steps_done == self._opened_at + 1  # the first that finds the optimiser's state
        others = [*_tensors(batch), *self._parameters()]
        with self.meter.measured(weighed=second or self._logs_next, others=others), self.random.entered():
            try:
                terms = self._update(batch)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                raise self._too_large(batch) from None
        self.steps_done += 1
        self._since.add(len(batch), waited)
        if self.steps_done % self.config.log_every == 0 or self.finished:
            self._log(terms, self._since)
            self._since = _Since()
        return terms

    def save_if_due(self, place: Mapping[str, int], *, stopping: bool = False) -> None:
        """Write the checkpoint where the settings ask for one, at the end, or when `stopping`.

        place: `Stream.state_dict` after the batch of the last step.
        """
        due = self._validation is not None and self._validation.due(self.steps_done)
        if stopping or self.finished or due or self.steps_done % self.config.checkpoint_every == 0:
            self._save(place)

    def validate_if_due(self) -> None:
        """Evaluate where the settings ask for that and it is not done yet, the averaged weights where there are any.

        After `save_if_due`, and at the start: a run that is killed in here loses nothing.
        """
        if self._validation is None or not self._validation.due(self.steps_done):
            return
        started = time.monotonic()
        head = cast(MaskHead, self.averages.get("model", self.model))
        self._validation.evaluate(head, self.steps_done, self._track)
        if self._since is not None:
            self._since.leave_out(time.monotonic() - started)

    def write_head(self) -> None:
        """Write the result into the run directory: the averaged weights where there are any."""
        result = {**self.learning, **self.averages}
        if self.detector is not None:
            write_detector(self.folder, result["detector"].state_dict())
        save_tensors(self.folder / HEAD, result["model"].state_dict())

    def release(self) -> None:
        """Give back the memory of weights and optimiser; the trainer is of no use after it."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
        self.optimizer.param_groups.clear()  # `to` below makes new parameters, these hold the old ones
        for model in (*self.learning.values(), *self.averages.values()):
            model.to("meta")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _logs_next(self) -> bool:
        step = self.steps_done + 1
        return step % self.config.log_every == 0 or step == self.config.steps

    def _update(self, batch: Batch) -> dict[str, float]:
        config = self.config
        parts = batch.split(config.micro_batch)
        targets = [self.model.targets(part, self.categories, config, self.generator) for part in parts]
        learners = sum(map(len, targets))
        if not learners:
            return {}
        rate = learning_rate(config, self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)  # checkpoints of before fine-tuning have none
        self.optimizer.zero_grad()
        values: dict[str, float] = {}
        for part, wanted in zip(parts, targets, strict=True):
            if len(wanted):  # every term is a mean over what learns
                for name, value in self._backward(part, wanted, len(wanted) / learners).items():
                    values[name] = values.get(name, 0.0) + value
        if config.clip:
            norm = nn.utils.clip_grad_norm_(self._parameters(), config.clip)
            if not math.isfinite(norm.item()):  # the weights would be none from here on, and the next checkpoint
                raise self._not_finite("gradient", values, batch)
        self.optimizer.step()
        self._average()
        return {"loss": sum(values.values()), **values}

    def _backward(self, batch: Batch, targets: Sized, share: float) -> dict[str, float]:
        """Add the gradients of the loss on these images, which have this share of it; returns its terms."""
        config = self.config
        terms = self.model.loss(batch, targets, config, self.generator)
        if self.detector is not None and config.detection_weight:
            terms["detection"] = config.detection_weight * detection_terms(batch, self.detector, self.categories)
        loss = share * torch.stack(list(terms.values())).sum()
        values = {name: share * term.item() for name, term in terms.items()}
        if not math.isfinite(sum(values.values())):
            raise self._not_finite("loss", values, batch)
        loss.backward()
        self.meter.part_done()
        return values

    def _not_finite(self, what: str, values: Mapping[str, float], batch: Batch) -> PipelineError:
        ids = [info.id for info in batch.infos]
        return PipelineError(
            f"the {what} is not finite at step {self.steps_done}: {dict(values)}, images {ids}",
            f"lower the learning rate: lr={self.config.lr / 3:.1e}; the last checkpoint in {self.folder} is kept",
        )

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential average of the weights; short at the start, where the weights of before are worth little."""
        decay = min(self.config.ema, (self.steps_done + 1) / (self.steps_done + 10))
        for name, average in self.averages.items():
            now = self.learning[name].state_dict()
            for mean, new in zip(average.state_dict().values(), now.values(), strict=True):
                mean.lerp_(new, 1 - decay) if mean.is_floating_point() else mean.copy_(new)

    def _log(self, terms: dict[str, float], since: "_Since") -> None:
        self.latest = {
            "step": self.steps_done,
            **terms,
            "lr": self.optimizer.param_groups[0]["lr"],
            **since.rates(),
            "memory_bytes": self.meter.process_bytes,
            "step_seconds": self.meter.seconds(),
            "step_memory_bytes": self.meter.step_bytes,
        }
        self._track.log(self.latest)

    def _too_large(self, batch: Batch) -> PipelineError:
        shown = {key: self.latest[key] for key in TERMS if key in self.latest}
        return PipelineError(
            f"out of memory at step {self.steps_done}, batch of {len(batch)} images, last terms {shown or 'none yet'}",
            "micro_batch=1, or rois_per_image, hidden or roi lower, or amp=bf16",
        )

    def _bytes(self) -> int:
        """Of weights, averaged weights, gradients and optimiser."""
        own = [*self._parameters(), *(p for average in self.averages.values() for p in average.parameters())]
        gradients = [parameter.grad for parameter in own if parameter.grad is not None]
        moments = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return sum(tensor.nbytes for tensor in [*own, *gradients, *moments])

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for one in self.learning.values() for parameter in one.parameters()]

    def _save(self, place: Mapping[str, int]) -> None:
        content = {
            "step": self.steps_done,
            **{name: one.state_dict() for name, one in self.learning.items()},
            "averaged": self.averages["model"].state_dict() if self.averages else None,
            **{f"averaged_{name}": self.averages[name].state_dict() for name in self.averages if name != "model"},
            "optimizer": self.optimizer.state_dict(),
            "stream": dict(place),
            "random": {"boxes": self.generator.get_state(), **self.random.state_dict()},
        }
        save_tensors(self.folder / CHECKPOINT, content)

    def _restore(self) -> None:
        content = torch.load(self.folder / CHECKPOINT, map_location="cpu", weights_only=True)
        self.steps_done, self.place = content["step"], content["stream"]
        for name, one in self.learning.items():
            one.load_state_dict(content[name])
        for name, one in self.averages.items():
            one.load_state_dict(content["averaged" if name == "model" else f"averaged_{name}"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.generator.set_state(content["random"]["boxes"])
        self.random.load_state_dict(content["random"])


class _Since:
    """What happened since the last line of the log."""

    def __init__(self, before: float = 0.0) -> None:
        """before: seconds that it began before now."""
        self._started, self._images, self._waited = time.monotonic() - before, 0, 0.0

    def add(self, images: int, waited: float) -> None:
        self._images += images
        self._waited += waited

    def leave_out(self, seconds: float) -> None:
        self._started += seconds

    def rates(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return {"images_per_second": self._images / seconds, "data_wait": self._waited / seconds}


def out_of_memory(error: Exception) -> bool:
    """Whether the memory did not suffice, of a GPU or of this machine, which PyTorch says in other words."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


def _tensors(batch: Batch) -> list[Tensor]:
    features = batch.features
    return [*features.maps.values(), features.queries, features.boxes]


def _network(detector: LearningDetector | None) -> dict[str, nn.Module]:
    return {} if detector is None else {"detector": detector.network}


def _parameter_groups(model: nn.Module, config: TrainConfig, scale: float) -> list[dict[str, Any]]:
    """scale: of the learning rate."""
    learned = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in learned if p.ndim > 1 or config.decay_norms]
    others = [p for p in learned if p.ndim <= 1 and not config.decay_norms]
    groups = [(weights, config.weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay, "scale": scale} for params, decay in groups if params]
