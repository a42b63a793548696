"""The training of the embedded detector, a few steps of it: it runs, resumes, and leaves weights that load."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from pipeline.detectors.registry import build_detector

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_shapes_detector.py"


def train(out: Path, steps: int) -> None:
    words = ["--out", str(out), "--steps", str(steps), "--batch-size", "2", "--unseen", "2"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "on 2 unseen drawings" in done.stdout


def test_it_trains_goes_on_and_leaves_weights_that_load(tmp_path: Path) -> None:
    train(tmp_path, 1)
    train(tmp_path, 3)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["class"] > 0 and row["l1"] > 0 and row["giou"] > 0 for row in rows)
    assert set(json.loads((tmp_path / "metrics.json").read_text())["bbox"]) >= {"AP", "AP50"}
    detector = build_detector("shapes-tiny", tmp_path / "shapes-tiny.safetensors")
    features = detector.detect(torch.zeros(1, 3, 160, 192))
    assert features.boxes.shape == (1, detector.detections, 4)
    assert features.boxes.isfinite().all()
