"""What the native detectors cost an image: multiply-adds, and the maps that a cache keeps of it. No weights needed.

python scripts/detector_costs.py        a Markdown table, about a minute and a gigabyte of memory

Bytes in the cache are projected with what `scripts/bench_cache.py --resnet` measured on maps of a trained ResNet-50.
"""

import argparse

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import from_table
from pipeline.describe import detector_inputs
from pipeline.detectors.listing import list_detectors
from pipeline.detectors.native import NativeConfig, build_network
from pipeline.detectors.registry import CARD, detector_table

INPUT_HW = (800, 1216)
"""The input that sizes are told of; COCO's mean is 800 x 1136."""
COCO_TRAIN = 118_287
C1_RATIO, ENCODER_RATIO = 0.329, 0.443
"""Bytes of the default codec over raw fp16 (docs/cache.md)."""


def raw_megabytes(name: str, levels: tuple[str, ...]) -> dict[str, float]:
    """Every stored map of one image in half precision, by level."""
    widths = detector_inputs(name).widths
    cells = {level: -(-INPUT_HW[0] // s) * -(-INPUT_HW[1] // s) for level, s in widths.strides.items()}
    return {level: 2 * cells[level] * widths.channels[level] / 1e6 for level in levels}


def multiply_adds(name: str) -> float:
    """Of matrix products and convolutions, in billions: the network runs on an image that has a size and no values."""
    table, file = detector_table(name)
    config = from_table(NativeConfig, {key: value for key, value in table.items() if key not in CARD}, str(file))
    network = build_network(config).eval().requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, *INPUT_HW), torch.zeros(1, *INPUT_HW, dtype=torch.bool))
    return counter.get_total_flops() / 2e9


def main() -> None:
    """Print a line for each detector of kind "hdetr" or "dino" that comes without weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--c1-ratio", type=float, default=C1_RATIO)
    parser.add_argument("--encoder-ratio", type=float, default=ENCODER_RATIO)
    options = parser.parse_args()
    print(
        "| detector | multiply-adds (G) | raw fp16 (MB) | in the cache (MB) | COCO train (TB) |\n|---|---|---|---|---|"
    )
    for card in list_detectors():
        if card.kind in ("hdetr", "dino") and not card.embedded:
            raw = raw_megabytes(card.name, card.levels)
            kept = options.c1_ratio * raw["c1"] + options.encoder_ratio * (sum(raw.values()) - raw["c1"])
            row = (
                f"{multiply_adds(card.name):.0f} | {sum(raw.values()):.1f} | {kept:.1f} | {kept * COCO_TRAIN / 1e6:.2f}"
            )
            print(f"| `{card.name}` | {row} |", flush=True)


if __name__ == "__main__":
    main()
