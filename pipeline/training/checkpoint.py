"""A run directory: config.json (what is trained, on what), checkpoint.pt (where it stands), head.pt (the result).

One that is evaluated on the way has best.pt too, the best weights so far; `track.best_step` tells of which step.
A run that trained its detector too has that in detector.safetensors, a weights file like the one it began with.
"""

import dataclasses
import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from featcache import CacheSpec

from ..data.panoptic import CATEGORIES, SegmentClass
from ..errors import PipelineError
from ..files import check_folder, whole_file, write_json
from ..heads.base import MaskHead, Widths
from ..heads.registry import build_head
from .recipe import Recipe

CONFIG, CHECKPOINT, HEAD, BEST, DETECTOR = "config.json", "checkpoint.pt", "head.pt", "best.pt", "detector.safetensors"


@dataclass(frozen=True)
class Run:
    """What config.json holds."""

    recipe: Recipe
    widths: Widths
    source: dict[str, Any]
    """`CacheSpec.source` of the cache it learns from: a head is tied to the features it has seen. At the end of a run
    that trains the detector too, of that detector."""
    categories: list[dict[str, Any]]
    fingerprint: str
    """Of the cache, or of one that held the live detector's features as they were at the start."""
    versions: dict[str, str]
    """Of the code that began it; log.txt has that of every start. `commit` where it is a git checkout."""
    segment_categories: list[dict[str, Any]] = dataclasses.field(default_factory=list[dict[str, Any]])
    """Of the panoptic ground truth, {"id", "name", "isthing"}; empty where there is none."""


def describe_run(recipe: Recipe, spec: CacheSpec) -> Run:
    """The run that trains this head on this cache, with this installation."""
    return Run(
        recipe=recipe,
        widths=Widths.of_cache(spec),
        source=dict(spec.source),
        categories=cast(Any, spec.recipe["categories"]),
        segment_categories=cast(Any, spec.recipe.get(CATEGORIES, [])),
        fingerprint=spec.fingerprint,
        versions={"python": platform.python_version(), "torch": torch.__version__, **code_version()},
    )


def claim_run(folder: Path, run: Run) -> None:
    """Start the run directory, or make sure that the one there is of the same training; raises PipelineError."""
    check_claim(folder, run)
    if not (folder / CONFIG).exists():
        write_run(folder, run)


def check_claim(folder: Path, run: Run) -> None:
    """Raise PipelineError where the folder holds a run of another training, naming what differs; writes nothing."""
    if not (folder / CONFIG).exists():
        check_folder(folder, "--run")
        return
    differing = differences(read_run(folder), run)
    if differing:
        listing = "; ".join(f"{name}: run has {there!r}, now {now!r}" for name, there, now in differing)
        raise PipelineError(
            f"{folder} is a run of another training ({listing})",
            "give another folder, or the settings of that run to continue it",
        )


def differences(there: Run, now: Run) -> list[tuple[str, Any, Any]]:
    """(name, value there, value now) of what keeps one training from being the other."""
    tables = [("", _scalars(there), _scalars(now))]
    if there.recipe.family == now.recipe.family:
        tables.append(("", asdict(there.recipe.head), asdict(now.recipe.head)))
    tables.append(("", asdict(there.recipe.train), asdict(now.recipe.train)))
    if there.fingerprint == now.fingerprint:  # else it has other widths because it is another cache
        tables.append(("widths.", asdict(there.widths), asdict(now.widths)))
    return [
        (prefix + name, before[name], after[name])
        for prefix, before, after in tables
        for name in before
        if before[name] != after[name]
    ]


def _scalars(run: Run) -> dict[str, str]:
    """What stands for itself; `about` is only words."""
    return {"head": run.recipe.name, "family": run.recipe.family, "fingerprint of the cache": run.fingerprint}


def write_run(folder: Path, run: Run) -> None:
    """Create the run directory and its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, asdict(run), indent=2)


def read_run(folder: Path) -> Run:
    """What `write_run` wrote; raises PipelineError where there is no run."""
    try:
        table = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        raise PipelineError(
            f"{folder} is no run: it has no {CONFIG}", "python -m pipeline train --cache DIR --head NAME --run DIR"
        ) from None
    widths = table["widths"]
    segments = tuple(SegmentClass(**one) for one in widths.get("segments", []))
    return Run(
        recipe=Recipe.from_json(table["recipe"]),
        widths=Widths(**{**widths, "encoder": tuple(widths["encoder"]), "segments": segments}),
        source=table["source"],
        categories=table["categories"],
        segment_categories=table.get("segment_categories", []),
        fingerprint=table["fingerprint"],
        versions=table["versions"],
    )


def write_detector(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Put the weights of the trained detector into a run; from here on it is tied to the features of that one."""
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    with whole_file(folder / DETECTOR) as stream:
        stream.write(content)
    run = read_run(folder)
    write_run(folder, replace(run, source={**run.source, "weights_sha256": hashlib.sha256(content).hexdigest()}))


def load_head(folder: Path, device: torch.device | str = "cpu", *, best: bool = False) -> tuple[MaskHead, Run]:
    """The trained head of a run, in eval mode, and what it was trained on. best: of best.pt, not the last."""
    run = read_run(folder)
    head = build_head(run.recipe.family, run.recipe.head, run.widths)
    file = folder / (BEST if best else HEAD)
    if best and not file.exists():
        raise PipelineError(
            f"{folder} has no {BEST}: it was not evaluated on the way",
            "train with --val-cache DIR evaluate_every=N, or leave out --best",
        )
    if not file.exists():
        raise PipelineError(f"{folder} is not trained to its end: it has no {HEAD}", "run the same train command again")
    try:
        head.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except RuntimeError as error:  # torch's, a line for each kind of mismatch
        found = " ".join(str(error).split())
        raise PipelineError(
            f"{file} does not fit the head that {folder}/{CONFIG} describes: {found:.300}",
            "it may be of another version of featcache (code in config.json): train again, or go back to that version",
        ) from None
    head.amp = run.recipe.train.amp == "bf16"
    return head.to(torch.device(device)).to(memory_format=torch.channels_last).eval(), run


def check_features(run: Run, spec: CacheSpec, where: str) -> None:
    """Refuse features that are not those a head was trained on, naming the field.

    `where` opens the message: the cache or the detector that gives them.
    """
    for field in sorted(set(run.source) | set(spec.source)):
        mine, theirs = run.source.get(field), spec.source.get(field)
        if mine != theirs:
            raise PipelineError(
                f"{where} gives other features than the head was trained on: {field} is {theirs!r}, "
                f"the head's is {mine!r}",
                "use the detector that the head was trained with, or train a head on this one",
            )


def save_tensors(file: Path, content: Any) -> None:
    """torch.save that appears whole or not at all."""
    with whole_file(file) as stream:
        torch.save(content, stream)


@functools.cache
def code_version() -> dict[str, str]:
    """`featcache`: version of the package; `commit`: of the git checkout it runs from, if any, `-dirty` if changed."""
    try:
        versions = {"featcache": version("featcache")}
    except PackageNotFoundError:
        versions = {"featcache": "not installed"}
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        words = [
            "git",
            "--no-optional-locks",
            "-C",
            str(checkout),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ]
        try:
            told = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
            versions["commit"] = told.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass  # no git, or not its owner's: the version of the package has to do
    return versions
