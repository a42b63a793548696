"""What an ablation on a cache comes to, before anything is trained: its heads, their run directories and passes."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ..data.sources import Cached
from ..errors import PipelineError, UsageError
from ..heads.base import Widths
from .ablation import Ablation, Row, load_ablation
from .checkpoint import Run, describe_run
from .checks import check_views, count_parameters
from .order import Order
from .recipe import Recipe, override


@dataclass(frozen=True)
class Member:
    """One head with one seed, and the run directory that it lives in."""

    row: Row
    """Its recipe is the one trained: settings of the command line and seed included."""
    folder: Path
    run: Run
    parameters: int
    order: Order
    problem: str = ""
    """Why this head cannot be built on this cache."""

    @property
    def learns(self) -> bool:
        """Whether there is something to train."""
        return self.parameters > 0 and not self.problem

    def __str__(self) -> str:
        return f"head '{self.row.name}' (seed {self.row.recipe.train.seed})"


def plan(
    name: str,
    source: Cached,
    out: Path,
    *,
    steps: str | None,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> tuple[Ablation, list[Member]]:
    """The ablation and its members, row by row. Nothing is trained or written."""
    ablation, spec = load_ablation(name), source.cache.spec
    written = _of_detector(ablation.rows, spec.source.get("name"))
    rows = _frozen(_with_settings(written, settings, steps))
    _refuse_equal(written, rows)
    if any(row.recipe.train.evaluate_every for row in rows):
        raise UsageError(
            "ablate evaluates every head once, at the end: evaluate_every is for train",
            "leave it out, or train that head alone: python -m pipeline train --val-cache DIR evaluate_every=N ...",
        )
    members: list[Member] = []
    for row in rows:
        parameters, problem = 0, ""
        try:
            parameters = count_parameters(row.recipe, Widths.of_cache(spec))
            check_views(row.recipe, spec)
        except PipelineError as error:
            problem = f"{error.message}; {error.hint}" if error.hint else error.message
        seeded = [(replace(row, recipe=_seeded(row.recipe, seed)), f"-seed{seed}") for seed in seeds]
        for one, suffix in seeded if seeds and parameters else [(row, "")]:
            run, order = describe_run(one.recipe, spec), Order.of(one.recipe.train, source)
            members.append(Member(one, out / (slug(row.name) + suffix), run, parameters, order, problem))
    folders = [member.folder for member in members]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UsageError(f"two heads of {name} would share the run directory {twice}", "give them other names or seeds")
    return replace(ablation, rows=rows), members


def groups(members: Sequence[Member]) -> dict[Order, list[Member]]:
    """The members that have something to learn, by the pass that feeds them."""
    found: dict[Order, list[Member]] = {}
    for member in members:
        if member.learns:
            found.setdefault(member.order, []).append(member)
    return found


def overview(members: Sequence[Member]) -> tuple[list[dict[str, object]], list[str]]:
    """What an ablation would do: a row for each member, a line for each pass."""
    passes = groups(members)
    numbers = {order: number for number, order in enumerate(passes, start=1)}
    table: list[dict[str, object]] = [
        {
            "head": member.row.name,
            "seed": member.row.recipe.train.seed if member.learns else "-",
            "parameters": "-" if member.problem else member.parameters,
            "steps": member.row.recipe.train.steps if member.learns else "-",
            "pass": numbers[member.order] if member.learns else "-",
            "run": str(member.folder),
        }
        for member in members
    ]
    lines = [
        f"pass {numbers[order]}: {len(heads)} heads, {order}, {max(h.row.recipe.train.steps for h in heads)} steps"
        for order, heads in passes.items()
    ]
    lines += [f"{member} cannot be built: {member.problem}" for member in members if member.problem]
    return table, lines


def slug(name: str) -> str:
    """A row's name as that of a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "row"


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return replace(recipe, train=replace(recipe.train, seed=seed))


def _of_detector(rows: Sequence[Row], detector: object) -> Sequence[Row]:
    """Where the rows differ in the detector: those of the one that made the cache.

    If there are none, those that differ in more than that: on one cache the others would be one head several times. So
    would rows of one detector with other weights, of which the first is kept.
    """
    if len({row.detector for row in rows}) == 1:
        return rows
    own = [row for row in rows if row.detector == detector] or [row for row in rows if not _twins(row, rows)]
    again = [row for place, row in enumerate(own) if any(_same_head(row, one) for one in own[:place])]
    own = [row for row in own if row not in again]
    left_out = [row for row in rows if row not in own and row not in again]
    others = ", ".join(f"'{row.name}' ({row.detector})" for row in left_out)
    if not any(_is_frozen(row) for row in own):
        compared = ", ".join(f"'{row.name}' ({row.detector})" for row in left_out if _is_frozen(row))
        raise PipelineError(
            f"these rows compare detectors, and the cache is of none of them but of {detector}: {compared}",
            "extract a cache with one of these detectors, or train one head: python -m pipeline train --head NAME",
        )
    if others:
        print(f"note: left out, for they are rows of other detectors than {detector}: {others}", file=sys.stderr)
    if again:
        names = ", ".join(f"'{row.name}'" for row in again)
        print(f"note: left out, for on one cache they are a head that is there already: {names}", file=sys.stderr)
    return own


def _twins(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The rows of other detectors that are the same head, trained the same."""
    return [one for one in rows if one.detector != row.detector and _same_head(one, row)]


def _same_head(one: Row, other: Row) -> bool:
    """Whether two rows are one head, trained the same, whatever they are called and published with."""
    return replace(one.recipe, name="") == replace(other.recipe, name="")


def _is_frozen(row: Row) -> bool:
    return row.recipe.train.finetune == "none"


def _frozen(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Without the rows that train the detector too, whose features no cache can hold."""
    left_out = [row for row in rows if not _is_frozen(row)]
    if not left_out:
        return tuple(rows)
    names, part = ", ".join(f"'{row.name}'" for row in left_out), left_out[0].recipe.train.finetune
    hint = (
        "python -m pipeline train --live --detector NAME --weights FILE --images DIR --annotations JSON "
        f"--head mask-frozen-detr --run DIR finetune={part} detection_weight=1"
    )
    if len(left_out) == len(rows):
        raise PipelineError(f"every row trains the detector too, which no cache can feed: {names}", hint)
    print(f"note: left out, for they train the detector too: {names}; one of them: {hint}", file=sys.stderr)
    return tuple(row for row in rows if row not in left_out)


def _with_settings(rows: Sequence[Row], settings: Mapping[str, Any], steps: str | None) -> tuple[Row, ...]:
    """The rows with what the command line says; a setting that a row's head does not have passes it by."""
    known = [{*vars(row.recipe.head), *vars(row.recipe.train)} for row in rows]
    if stray := [key for key in settings if not any(key in fields for fields in known)]:
        override(rows[0].recipe, {stray[0]: settings[stray[0]]})  # raises the error that names the nearest
    changed: list[Row] = []
    for row, fields in zip(rows, known, strict=True):
        mine = {key: value for key, value in settings.items() if key in fields}
        if steps is not None:
            mine |= _steps(steps, row.recipe)
        try:
            changed.append(replace(row, recipe=override(row.recipe, mine)))
        except PipelineError as error:
            raise type(error)(f"row '{row.name}': {error.message}", error.hint) from None
    for key in (*settings, "steps") if steps is not None and "%" not in steps else settings:
        values = sorted(
            {str(_setting(row.recipe, key)) for row, fields in zip(rows, known, strict=True) if key in fields}
        )
        if len(values) > 1:
            scale = "; P% would scale it" if key == "steps" else ""
            print(f"note: one {key} for all replaces what the rows vary: {', '.join(values)}{scale}", file=sys.stderr)
    return tuple(changed)


def _refuse_equal(written: Sequence[Row], rows: Sequence[Row]) -> None:
    """Rows that were written as different heads have to stay so: the table would compare nothing."""
    before = {row.name: row for row in written}
    for one, other in combinations(rows, 2):
        if _same_head(one, other) and not _same_head(before[one.name], before[other.name]):
            raise UsageError(
                f"'{one.name}' and '{other.name}' become the same head: a setting for all rows replaces what they "
                "differ in",
                "leave that setting out, or name another table",
            )


def _setting(recipe: Recipe, key: str) -> Any:
    return getattr(recipe.head if hasattr(recipe.head, key) else recipe.train, key)


def _steps(text: str, recipe: Recipe) -> dict[str, str]:
    """The settings that `600`, or `5%` of the row's own steps and warm-up, stand for."""
    try:
        if not text.endswith("%"):
            return {"steps": str(int(text))}
        share = float(text[:-1]) / 100
    except ValueError:
        raise UsageError(f"--steps {text} is neither a number nor a share", "such as 600, or 5%") from None
    return {"steps": str(round(share * recipe.train.steps)), "warmup": str(round(share * recipe.train.warmup))}
