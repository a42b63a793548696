"""Train the embedded detector `shapes-tiny`, a small H-DETR, on drawings; this command made the committed weights:

    python scripts/train_shapes_detector.py --out runs/shapes-tiny     an hour and a half of one core

Every step draws new pictures, so nothing is seen twice. The rate is flat and then falls to zero over the last third, so
a stopped run can go on with another --steps. Ends with box AP on 500 drawings that it never saw.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_shapes import CLASSES, Drawing, draw, random_hw, write_set
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from featcache.progress import Progress
from pipeline.config import read_toml, shipped
from pipeline.data.coco import load_coco, read_image
from pipeline.data.transforms import view_to_original, xyxy_to_cxcywh
from pipeline.detectors.backbones.narrow import Narrow
from pipeline.detectors.hdetr import Decoded, HDetr, select
from pipeline.detectors.registry import build_detector
from pipeline.masks.coco_eval import coco_figures, coco_ground_truth
from pipeline.masks.results import Result, box_results
from pipeline.training.detection import WEIGHTS, Objects, set_loss

MANY = 4
"""Extra groups of queries, in whose branch each object is learned this many times (H-DETR's one-to-many branch)."""
WEIGHTS_FILE = "shapes-tiny.safetensors"
DRAWN_SEED, UNSEEN_SEED = 100, 200
"""First word of the seeds of drawings to learn from and to test on; `make_shapes.py` takes words below 100."""


class Drawings(Dataset[tuple[Tensor, Objects]]):
    """Item i is the batch of step i, all of one size: uint8 "b 3 h w" and its targets."""

    def __init__(self, steps: range, batch_size: int, seed: int) -> None:
        self.steps, self.batch_size, self.seed = steps, batch_size, seed

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, position: int) -> tuple[Tensor, Objects]:
        rng = np.random.default_rng([DRAWN_SEED, self.seed, self.steps[position]])
        hw = random_hw(rng)
        drawings = [draw(rng, hw) for _ in range(self.batch_size)]
        pixels = torch.from_numpy(np.stack([drawing.pixels for drawing in drawings])).permute(0, 3, 1, 2)
        return pixels, [_targets(drawing) for drawing in drawings]


def _targets(drawing: Drawing) -> tuple[Tensor, Tensor]:
    height, width = drawing.pixels.shape[:2]
    corners = torch.from_numpy(drawing.boxes_xyxy()).float() / torch.tensor([width, height, width, height])
    return torch.tensor(drawing.labels, dtype=torch.int64), xyxy_to_cxcywh(corners)


class Student(nn.Module):
    """The detector, and the one-to-many queries that only training has."""

    def __init__(self, table: dict[str, Any]) -> None:
        super().__init__()
        sizes = ("queries", "width", "levels", "encoder_layers", "decoder_layers", "heads", "points", "feed_forward")
        self.detector = HDetr(Narrow(), classes=len(CLASSES), **{name: table[name] for name in sizes})
        self.many = nn.Embedding(MANY * table["queries"], table["width"])

    def forward(self, images: Tensor) -> tuple[Decoded, list[Tensor], list[Tensor]]:
        """The one-to-one output, and the class logits and boxes of each layer of the one-to-many branch."""
        with torch.autocast("cpu", torch.bfloat16):  # of the backbone: the detector keeps the rest in float32
            one = self.detector(images)
        references = select(one.proposal_logits[..., 0], one.proposal_boxes, self.many.num_embeddings).sigmoid()
        content = self.many.weight[: references.shape[1]]
        _, logits, boxes = self.detector.decode(content, references, one.memory[-1], one.pyramid)
        return one, logits, boxes


def losses(student: Student, images: Tensor, targets: Objects) -> dict[str, Tensor]:
    """Weighted terms, summed over layers and branches."""
    one, many_logits, many_boxes = student(images)
    objects = [(torch.zeros_like(labels), boxes) for labels, boxes in targets]  # the first stage knows no classes
    layers = [(logits, boxes, targets, 1) for logits, boxes in zip(one.logits, one.boxes, strict=True)]
    layers += [(logits, boxes, targets, MANY) for logits, boxes in zip(many_logits, many_boxes, strict=True)]
    layers += [(one.proposal_logits[..., :1], one.proposal_boxes.sigmoid(), objects, MANY)]
    terms = [set_loss(*layer) for layer in layers]
    return {name: torch.stack([term[name] for term in terms]).sum() * weight for name, weight in WEIGHTS.items()}


def rate(step: int, steps: int, warmup: int = 200, falling: float = 1 / 3) -> float:
    """Of the learning rate: up, flat, and down to zero over the last part."""
    return min((step + 1) / warmup, 1.0, (steps - step) / (falling * steps))


def normalised(pixels: Tensor, table: dict[str, Any]) -> Tensor:
    """uint8 "b 3 h w" -> the detector's input."""
    mean, std = (torch.tensor(table["transform"][name])[:, None, None] for name in ("mean", "std"))
    return ((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def train(out: Path, table: dict[str, Any], steps: int, batch_size: int, lr: float, seed: int) -> Student:
    """All steps, from the last checkpoint if there is one; returns the averaged student."""
    torch.manual_seed(seed)
    student = Student(table).to(memory_format=torch.channels_last)
    for head in (*student.detector.class_embed, student.detector.proposals.class_embed):
        nn.init.constant_(head.bias, -4.6)  # every class starts at a probability of 0.01 (focal loss)
    for head in (*student.detector.bbox_embed, student.detector.proposals.bbox_embed):
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)
    averaged = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=True)
    slow = [p for name, p in student.named_parameters() if "sampling_offsets" in name]
    fast = [p for name, p in student.named_parameters() if "sampling_offsets" not in name]
    groups = [{"params": fast, "scale": 1.0}, {"params": slow, "scale": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=1e-4)
    done, checkpoint = 0, out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        done = saved["step"]
        student.load_state_dict(saved["student"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
    out.mkdir(parents=True, exist_ok=True)
    loader = DataLoader(
        Drawings(range(done, steps), batch_size, seed), batch_size=None, num_workers=1, prefetch_factor=4
    )
    with Progress(steps, "steps", done=done) as progress, (out / "metrics.jsonl").open("a") as log:
        for step, (pixels, targets) in enumerate(loader, done):
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"] * rate(step, steps)
            terms = losses(student, normalised(pixels, table), targets)
            total = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            averaged.update_parameters(student)
            numbers = {"step": step + 1, **{name: round(term.item(), 4) for name, term in terms.items()}}
            log.write(json.dumps(numbers) + "\n")
            progress.update(1, ", ".join(f"{name} {value}" for name, value in list(numbers.items())[1:]))
            if (step + 1) % 250 == 0 or step + 1 == steps:
                state = {"student": student.state_dict(), "averaged": averaged.state_dict()}
                content = {"step": step + 1, **state, "optimizer": optimizer.state_dict()}
                torch.save(content, checkpoint.with_suffix(".part"))
                checkpoint.with_suffix(".part").replace(checkpoint)
                export(averaged.module, out / WEIGHTS_FILE)
                log.flush()
    return averaged.module


def export(student: nn.Module, file: Path) -> None:
    """The detector alone, in float16."""
    state = student.detector.state_dict()
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in halved.items()}, file)


def box_ap(weights: Path, out: Path, unseen: int) -> dict[str, float | None]:
    """COCO figures of the boxes on drawings that training never makes, written to OUT/unseen once."""
    annotations = write_set(out / "unseen", unseen, UNSEEN_SEED)
    coco = load_coco(annotations, annotations.parent / "images", None)
    detector, results = build_detector("shapes-tiny", weights), list[Result]()
    with Progress(unseen, "images") as progress:
        for index, info in enumerate(coco.images):
            features = detector.detect(detector.transform(read_image(coco, index))[None])
            boxes = view_to_original(features.boxes[0], (info.height, info.width))
            ids = [category["id"] for category in coco.categories]
            results += box_results(info.id, boxes, features.scores[0], features.labels[0], ids)
            progress.update(1)
    return coco_figures(coco_ground_truth(coco.images, coco.ground_truth, coco.categories), results, "bbox")


def main() -> None:
    """Train, then measure box AP on unseen drawings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/shapes-tiny"))
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unseen", type=int, default=500, help="drawings for the final figure")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="do not train, measure these weights")
    options = parser.parse_args()
    table = read_toml(shipped("detectors")["shapes-tiny"])
    started = time.monotonic()
    if not options.measure:
        train(options.out, table, options.steps, options.batch_size, options.lr, options.seed)
    figures = box_ap(options.measure or options.out / WEIGHTS_FILE, options.out, options.unseen)
    (options.out / "metrics.json").write_text(json.dumps({"bbox": figures}, indent=2))
    print(f"box AP {figures['AP']:.1f} on {options.unseen} unseen drawings, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
