"""Forward of H-DETR against transformers' Deformable DETR with the same weights, in one run, image by image in turn.

    python scripts/bench_detectors.py                        # hdetr-r50, random weights, 800 x 1066, on a processor
    python scripts/bench_detectors.py --device cuda --rounds 20 --bf16

Rounds alternate, the ratio is that of the medians. The goal is at most 1.10. Weights change no time, so random ones do;
memory and first-stage logits of both are compared too (the queries are not: rounding swaps proposals that are nearly
equal). Needs the extra `hf`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from deformable_detr import deformable_detr
from torch import Tensor

from pipeline.config import from_table, read_toml, shipped
from pipeline.detectors.device import torch_device
from pipeline.detectors.hdetr import HDetr
from pipeline.detectors.native import NativeConfig, build_network
from pipeline.detectors.registry import CARD


def main() -> None:
    """Print seconds of both, their ratio and how far their outputs are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="ours also with backbone and projections in bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch_device(options.device)
    torch.manual_seed(0)
    network = random_network()
    reference = deformable_detr(network).to(device)
    network.to(device)
    images = torch.randn(options.batch_size, 3, *options.size, device=device)
    forwards: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "ours": lambda: our_encoded(network, images),
        "transformers": lambda: encoded(reference(images)),
    }
    if options.bf16:
        forwards["ours, bf16"] = lambda: our_encoded(network, images, half=True)
    times: dict[str, list[float]] = {name: [] for name in forwards}
    results: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.inference_mode():
        for number in range(options.rounds + 1):
            for name, forward in forwards.items():
                seconds, results[name] = timed(forward, device)
                if number:  # the first round warms up
                    times[name].append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(
        f"hdetr-r50, {options.batch_size} x {options.size[0]} x {options.size[1]}, {device}, {options.threads} threads"
    )
    for name, seconds in medians.items():
        memory, logits = (
            (mine - theirs).abs().max().item()
            for mine, theirs in zip(results[name], results["transformers"], strict=True)
        )
        spread = f"median of {options.rounds}, {min(times[name]):.3f} to {max(times[name]):.3f}"
        apart = f"max|d| memory {memory:.1e}, logits {logits:.1e}"
        print(f"  {name:13} {seconds:8.3f} s ({spread}), {seconds / medians['transformers']:.3f} x; {apart}")


def random_network() -> HDetr:
    """hdetr-r50 with random weights, frozen."""
    table = read_toml(shipped("detectors")["hdetr-r50"])
    settings = {key: value for key, value in table.items() if key not in CARD}
    network = build_network(from_table(NativeConfig, settings, "hdetr-r50"))
    return cast(HDetr, network.eval().requires_grad_(False))


def our_encoded(network: HDetr, images: Tensor, half: bool = False) -> tuple[Tensor, Tensor]:
    """Memory and first-stage logits of a whole forward of ours."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        found = network(images)
    return found.memory[-1], found.proposal_logits


def encoded(found: Any) -> tuple[Tensor, Tensor]:
    """The same of theirs."""
    return found.encoder_last_hidden_state, found.enc_outputs_class


def timed(forward: Callable[[], tuple[Tensor, Tensor]], device: torch.device) -> tuple[float, tuple[Tensor, Tensor]]:
    """Seconds of one call, and its result."""
    synchronize(device)
    start = time.perf_counter()
    result = forward()
    synchronize(device)
    return time.perf_counter() - start, result


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
