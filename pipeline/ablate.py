"""Many heads for the price of one: the rows of an ablation, times seeds, learn from one pass over the cache."""

import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .ablation_table import BESIDE, SHOWN, Line, csv_text, markdown, plot
from .data.sources import Cached
from .describe import Inputs, describe
from .detectors.device import tell_unused_gpu
from .errors import PipelineError
from .evaluation import evaluate_together
from .files import check_folder, whole_file
from .heads.registry import build_head
from .training.ablation import Ablation, Row
from .training.checkpoint import HEAD, check_claim, check_features, claim_run, save_tensors
from .training.checks import check_order
from .training.plan import Member, groups, plan
from .training.together import train_together
from .training.track import read_track
from .training.trainer import Trainer, out_of_memory


@dataclass
class Outcome:
    """What an ablation came to."""

    ablation: Ablation
    members: list[Member]
    source: Cached
    judge: Cached
    """What the heads are evaluated on."""
    metrics: dict[Path, dict[str, Any]] = field(default_factory=dict[Path, dict[str, Any]])
    """By run directory."""
    failures: dict[Path, str] = field(default_factory=dict[Path, str])
    table: str = ""
    """The Markdown table."""

    def fail(self, folder: Path, error: Exception) -> None:
        """Note that a head drops out, and say so."""
        words = _in_words(error)
        (member,) = (member for member in self.members if member.folder == folder)
        self.failures[folder] = f"seed {member.row.recipe.train.seed}: {words}"
        print(f"warning: {member} drops out: {words}", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Raise PipelineError where a head failed."""
        if self.failures:
            names = ", ".join(str(member) for member in self.members if member.folder in self.failures)
            raise PipelineError(
                f"{len(self.failures)} of {len(self.members)} did not come to the end: {names}",
                "the table says why; the same command tries them again from their last checkpoint",
            )


def main(
    *,
    ablation: str,
    cache: Path,
    out: Path,
    val_cache: Path | None = None,
    steps: str | None = None,
    seeds: Sequence[int] = (),
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dry_run: bool = False,
) -> Outcome:
    """Train and evaluate every row with every seed; `out` gets a run directory for each, the table and the plot.

    A head's result is the one of `train` with the same settings, seed and cache: on a CPU bit for bit, on a GPU as far
    as its kernels repeat themselves. Heads whose images come in the same order (`Order`: seed or `order_seed`, batch
    size, views, holdout) share a pass; one pass follows the other. The same command again goes on where it was stopped.

    ablation: a shipped name or a TOML. val_cache: what the heads are evaluated on; without it the images that `holdout`
    left out, and without that the ones they learnt from. steps: a number, or a share such as `5%` of each row's own.
    settings: fields of the heads or their training, for all rows that know them; they win over the rows. dry_run: only
    check, and tell what would be trained and evaluated; nothing is written.

    Raises PipelineError where a run directory has another training, or the caches have features of two detectors.
    """
    check_folder(out, "--out")
    source = Cached(cache, device)
    judge = Cached(val_cache, device) if val_cache is not None else source
    outcome = Outcome(*plan(ablation, source, out, steps=steps, seeds=seeds, settings=settings or {}), source, judge)
    for member in outcome.members:
        if judge is not source:
            check_features(member.run, judge.cache.spec, f"cache {judge.cache.path}")
        if not member.problem:
            check_claim(member.folder, member.run)
    if not dry_run:
        tell_unused_gpu(device)
        _claim(outcome)
        _train(outcome)
        _evaluate(outcome)
        _write_report(outcome, out)
    return outcome


def _claim(outcome: Outcome) -> None:
    """Begin the run directories, once nothing stands in the way of any pass."""
    for member in outcome.members:
        if member.problem:
            outcome.fail(member.folder, PipelineError(member.problem))
    for order in groups(outcome.members):
        check_order(order, outcome.source)
    for member in outcome.members:
        if not member.problem:
            claim_run(member.folder, member.run)


def _train(outcome: Outcome) -> None:
    """All passes; heads that are trained to their end are left as they are."""
    for member in outcome.members:
        if not member.learns and not member.problem and not (member.folder / HEAD).exists():
            head = build_head(member.row.recipe.family, member.row.recipe.head, member.run.widths)
            save_tensors(member.folder / HEAD, head.state_dict())
    passes = groups(outcome.members)
    for number, (order, heads) in enumerate(passes.items(), start=1):
        left = [member for member in heads if not (member.folder / HEAD).exists()]
        finished = f", {len(heads) - len(left)} of them trained before" if len(left) < len(heads) else ""
        print(f"pass {number} of {len(passes)}: {len(heads)} heads{finished}; {order}", file=sys.stderr, flush=True)
        trainers = _trainers(left, outcome)
        train_together(outcome.source, trainers, drop=lambda trainer, error: outcome.fail(trainer.folder, error))


def _trainers(members: Sequence[Member], outcome: Outcome) -> Iterator[Trainer]:
    """One for each member whose weights have room on the device."""
    for member in members:
        try:
            yield Trainer(member.folder, member.run, outcome.source.device)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            outcome.fail(member.folder, PipelineError("out of memory before the first step", "fewer rows at a time"))


def _evaluate(outcome: Outcome) -> None:
    """On the judge's images: all of a cache given for it, else those that each head's `holdout` left out."""
    apart = outcome.judge is not outcome.source
    for holdout in sorted({0 if apart else member.order.holdout for member in outcome.members}):
        runs = [
            member.folder
            for member in outcome.members
            if member.folder not in outcome.failures and (apart or member.order.holdout == holdout)
        ]
        outcome.metrics |= evaluate_together(outcome.judge, runs, holdout=holdout, drop=outcome.fail)


def _write_report(outcome: Outcome, out: Path) -> None:
    ablation, spec = outcome.ablation, outcome.source.cache.spec
    inputs = Inputs.of_cache(spec) if "transform" in spec.source else None
    lines = [_line(row, outcome, inputs) for row in ablation.rows]
    boxes = next((metrics["bbox"] for metrics in outcome.metrics.values()), None)
    outcome.table = markdown(lines, ablation.columns, boxes, _notes(outcome))
    out.mkdir(parents=True, exist_ok=True)  # no head may have come so far
    texts = {"table.csv": csv_text(lines, ablation.columns), "table.md": f"# {ablation.about}\n\n{outcome.table}"}
    for name, text in texts.items():
        with whole_file(out / name) as stream:
            stream.write(text.encode())
    try:
        if any(line.figures.get("AP") for line in lines):
            plot(lines, ablation.about, out / "plot.png")
    except ModuleNotFoundError:
        print("no plot.png: matplotlib is not installed; pip install 'featcache[plot]'", file=sys.stderr)


def _line(row: Row, outcome: Outcome, inputs: Inputs | None) -> Line:
    members = [member for member in outcome.members if member.row.name == row.name]
    ended = [member for member in members if member.folder in outcome.metrics]
    metrics = [outcome.metrics[member.folder] for member in ended]
    beside = {kind: [one[kind]["AP"] for one in metrics if kind in one] for kind in BESIDE}
    log = [line for member in ended for line in _log(member.folder)]
    return Line(
        name=row.name,
        parameters=members[0].parameters,
        macs=describe(row.recipe, inputs).macs if inputs is not None and not members[0].problem else None,
        seeds=tuple(member.row.recipe.train.seed for member in ended),
        figures={name: known for name in SHOWN if (known := _known(one["segm"][name] for one in metrics))},
        beside={kind: known for kind, values in beside.items() if (known := _known(values))},
        step_seconds=statistics.median(line["step_seconds"] for line in log) if log else None,
        step_bytes=max(line["step_memory_bytes"] for line in log) if log else None,
        problems=tuple(outcome.failures[member.folder] for member in members if member.folder in outcome.failures),
        paper=row.paper,
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _log(run: Path) -> list[dict[str, Any]]:
    """Lines of the training, none of an evaluation on the way."""
    return [row for row in read_track(run) if "step_seconds" in row]


def _notes(outcome: Outcome) -> list[str]:
    source, judge = outcome.source, outcome.judge
    spec, device = source.cache.spec, source.device
    memory = "the allocator's peak" if device.type == "cuda" else "without the passing buffers of single operations"
    images = sorted({metrics["images"] for metrics in outcome.metrics.values()})
    where = f"{' or '.join(map(str, images)) or 'no'} images of {judge.cache.path}"
    learners = [member for member in outcome.members if member.learns]
    seen = judge is source and any(not member.order.holdout for member in learners)
    name = spec.source.get("name", "?")
    published = {row.detector for row in outcome.ablation.rows if row.paper}
    return [
        f"features of {name}, cache {source.cache.path} ({spec.fingerprint}); evaluated on {where}"
        + (", held out from the training" if judge is source and learners and not seen else ""),
        *(["**the heads learnt from these very images**: give --val-cache or holdout=5"] if seen else []),
        "± is the standard deviation over seeds; a step's time and memory are those of the head alone, the batch "
        f"being there already, on {device} (memory: {memory})",
        *(
            [f"in brackets the paper's figures, of {', '.join(sorted(published))} on COCO: compare rows"]
            if published
            else []
        ),
    ]


def _in_words(error: Exception) -> str:
    if out_of_memory(error):
        return "out of memory in the evaluation"
    if not isinstance(error, PipelineError):
        return f"unexpected {type(error).__name__}: {error}"
    return f"{error.message}; {error.hint}" if error.hint else error.message
