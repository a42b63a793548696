"""One training step of a head under torch.profiler: where its time goes, part by part, and the least it could take.

    OMP_NUM_THREADS=1 python scripts/profile_step.py --images 2           default head, H-DETR R50's widths, on the CPU
    python scripts/profile_step.py --device cuda --images 8               the same on a GPU, in float32
    python scripts/profile_step.py --device cuda --images 8 -- amp=bf16

Maps of 800 x 1216 as a cache gives them, --boxes objects in each image. A step is measured once without the profiler
and once with it, after a first that is not counted. On a CPU, where other programs take their turns, the times are
those of the processor in the first of both steps, divided among the parts as the clock has it in the second. Backward
time goes to the part whose forward pass made the graph.
The floor of a part is the larger of its operations over the speed of a large matrix product and its bytes (what goes
in and out, three times: forward and both gradients) over the speed of a copy; both speeds are measured in the same run.
"""

import argparse
import dataclasses
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_rows import synthetic_cache
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.data.sources import Batch, Cached
from pipeline.detectors import deformable
from pipeline.heads import base as heads_base
from pipeline.heads.mask_frozen_detr import head as head_file
from pipeline.training.checkpoint import claim_run, describe_run
from pipeline.training.recipe import load_recipe, override
from pipeline.training.targets import Targets
from pipeline.training.trainer import Trainer

PART, BACKWARD, REST = "part:", "autograd::engine::evaluate_function", "the rest"
POOL = "neck and mapper"


@dataclasses.dataclass
class Cost:
    """Of one part of a step: milliseconds, operations, bytes in and out."""

    forward: float = 0.0
    backward: float = 0.0
    flops: float = 0.0
    moved: float = 0.0

    @property
    def total(self) -> float:
        """Milliseconds."""
        return self.forward + self.backward


class Parts:
    """Wraps the functions that a step is made of, so that the profiler sees their names."""

    def __init__(self) -> None:
        self.moved: dict[str, float] = defaultdict(float)
        self._around: list[str] = []
        self._wrapped: list[tuple[Any, str, Any]] = []

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Calls of `owner.attribute` are the part `name` from now on."""
        run: Callable[..., Any] = getattr(owner, attribute)
        parameters = list(owner.parameters()) if isinstance(owner, nn.Module) and attribute == "forward" else []

        def named(*args: Any, **options: Any) -> Any:
            part = ": ".join([*(one for one in self._around if one != POOL), name])
            self._around.append(name)
            with record_function(PART + part):
                result = run(*args, **options)
            self._around.pop()
            self.moved[part] += sum(tensor.nbytes for tensor in tensors((args, options, result, parameters)))
            return result

        setattr(owner, attribute, named)
        self._wrapped.append((owner, attribute, run))

    def unwrap_all(self) -> None:
        """As it was: functions of modules are there for the next head too."""
        for owner, attribute, run in self._wrapped:
            setattr(owner, attribute, run)

    def wrap_all(self, trainer: Trainer) -> None:
        """Every part of a step of this head."""
        head: Any = trainer.model
        self.wrap(head, "targets", "matching")
        self.wrap(head, "pool", POOL)
        for kind in ("image_encoder", "scoring"):
            if getattr(head, kind) is not None:
                self.wrap(getattr(head, kind), "forward", {"scoring": "mask scoring"}.get(kind, "image encoder"))
        if head.box_encoder is not None:
            self.wrap(head.box_encoder, "forward", "box encoder")
        for layer in [head.query_mapper, *(layer for layers in head.query_layers for layer in layers)]:
            self.wrap(layer, "forward", "query encoder")
        self.wrap(head_file, "roi_align", "RoIAlign")
        self.wrap(head_file, "roi_coverage", "RoIAlign")
        self.wrap(head_file, "dot_product", "mask logits")
        self.wrap(deformable, "ms_deform_attn", "ms_deform_attn")
        self.wrap(heads_base, "loss_terms", "points and loss")
        self.wrap(Targets, "sample", "targets")
        self.wrap(trainer.optimizer, "step", "optimiser")


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments, those of `Features` and `Batch` left out."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)


def costs(events: Sequence[FunctionEvent], moved: dict[str, float], device: str) -> dict[str, Cost]:
    """What the profiler saw, by part; one inside another counts for itself alone: "image encoder: ms_deform_attn"."""

    def spent(event: FunctionEvent) -> float:
        return (event.device_time_total if device == "cuda" else event.cpu_time_total) / 1e3

    def path(event: FunctionEvent | None) -> str | None:
        """The part around an event; None inside a backward pass."""
        while event is not None and not event.name.startswith((BACKWARD, PART)):
            event = event.cpu_parent
        if event is None:
            return REST
        return event.name.removeprefix(PART) if event.name.startswith(PART) else None

    found: dict[str, Cost] = defaultdict(Cost)
    ordered = sorted((event for event in events if event.device_type.name == "CPU"), key=lambda e: e.time_range.start)
    made_by: dict[int, str] = {}
    for event in ordered:
        part = path(event)
        if part is None:
            continue
        if event.sequence_nr >= 0:
            made_by[event.sequence_nr] = part  # the last to start with a number made the node of that number
        if event.name.startswith(PART):
            found[part].forward += spent(event)
            around = path(event.cpu_parent)
            if around != REST and around is not None:
                found[around].forward -= spent(event)
        found[part].flops += flops(event) * (3 if "conv" in event.name else 1)  # backward convolutions are not counted
    for event in ordered:
        if event.name.startswith(BACKWARD):
            found[made_by.get(event.sequence_nr, REST)].backward += spent(event)
        elif path(event) is None:
            evaluated = event
            while not evaluated.name.startswith(BACKWARD) and evaluated.cpu_parent is not None:
                evaluated = evaluated.cpu_parent
            found[made_by.get(evaluated.sequence_nr, REST)].flops += flops(event)
    for part, cost in found.items():
        cost.moved = moved.get(part, 0.0) * (3 if cost.backward else 1)
    return found


def flops(event: FunctionEvent) -> float:
    """Of products and convolutions alone."""
    counted = any(word in event.name for word in ("aten::mm", "addmm", "bmm", "conv2d"))
    return float(event.flops or 0) if counted else 0.0


def speeds(device: torch.device) -> tuple[float, float]:
    """Bytes per second of a copy (read and written) and operations per second of a large float32 product."""
    values, product = torch.rand(64 << 20, device=device), torch.rand(2048, 2048, device=device)
    target = torch.empty_like(values)
    copy = min(seconds(lambda: target.copy_(values), device) for _ in range(4))
    multiply = min(seconds(lambda: product @ product, device) for _ in range(4))
    return 2 * values.nbytes / copy, 2 * 2048**3 / multiply


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """On a CPU of processor time, so that other programs do not count; on a GPU until it is done."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def one_path(path: str, options: argparse.Namespace, cache: Path, folder: Path) -> None:
    """Print the table of a step with this `neck_path`."""
    settings = dict(word.split("=", 1) for word in options.settings)
    base = {"batch_size": str(options.images), "steps": "1000", "log_every": "1000", "warmup": "0"}
    recipe = override(load_recipe(options.head), {**base, "neck_path": path, **settings})
    source = Cached(cache, options.device)
    run = describe_run(recipe, source.spec)
    claim_run(folder, run)
    trainer = Trainer(folder, run, source.device)
    batches = iter(source.stream(options.images, views=("orig",), indices=range(len(source)), seed=0))
    batch: Batch = next(batches)
    trainer.step(batch)
    reading = seconds(lambda: next(batches), source.device)
    plain = seconds(lambda: trainer.step(fresh(batch)), source.device)
    parts = Parts()
    parts.wrap_all(trainer)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if options.device == "cuda" else [])]
    with profile(activities=activities, record_shapes=True, with_flops=True) as profiler:
        profiled = seconds(lambda: trainer.step(fresh(batch)), source.device)
    parts.unwrap_all()
    found = costs(profiler.events() or [], parts.moved, options.device)
    bandwidth, peak = speeds(source.device)
    total = sum(cost.total for cost in found.values())
    scale = plain * 1e3 / total if options.device == "cpu" else 1.0
    print(f"\nneck_path = {path}: {plain * 1e3:.0f} ms a step ({profiled * 1e3:.0f} under the profiler), reading")
    print(f"{reading * 1e3:.0f} ms; a copy moves {bandwidth / 1e9:.1f} GB/s, a product does {peak / 1e9:.0f} GFLOP/s\n")
    print("| part | forward, ms | backward, ms | share | GFLOP | floor, ms |\n|---|---|---|---|---|---|")
    for name, cost in sorted(found.items(), key=lambda item: -item[1].total):
        if cost.total < 0.002 * total:
            continue
        least = max(cost.flops / peak, cost.moved / bandwidth) * 1e3
        times = f"{scale * cost.forward:.0f} | {scale * cost.backward:.0f} | {cost.total / total:.0%}"
        print(f"| {name} | {times} | {cost.flops / 1e9:.1f} | {least:.0f} |", flush=True)


def fresh(batch: Batch) -> Batch:
    """As the loader gives it: nothing of it worked out yet."""
    return dataclasses.replace(batch, derived={})


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, default=2, help="of a batch")
    parser.add_argument("--shrink", type=int, default=1, help="sides of the network input are divided by it")
    parser.add_argument("--boxes", type=int, default=7, help="objects in each image")
    parser.add_argument("--head", default="mask-frozen-detr")
    parser.add_argument("--paths", nargs="+", default=("full", "local"))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="fields of the head or its training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cache = synthetic_cache(Path(name) / "cache", options.images, options.boxes, 1, options.shrink)
        for path in options.paths:
            one_path(path, options, cache, Path(name) / path)


if __name__ == "__main__":
    main()
