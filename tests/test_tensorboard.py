"""TensorBoard gets the numbers of metrics.jsonl, all of them and no others."""

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from discs import write_discs
from typer.testing import CliRunner

from pipeline import tensorboard, train
from pipeline.cli import app
from pipeline.errors import PipelineError

ROWS: list[dict[str, Any]] = [
    {"step": 2, "loss": 1.5, "bce": 1.0, "lr": 1e-4, "memory_bytes": 7},
    {"step": 3, "val": {"AP": 21.5, "APl": None, "mask_iou": 0.5}, "best": True},
    {"step": 4, "lr": 1e-5, "memory_bytes": 8},
]
POINTS = {
    ("loss", 2): 1.5, ("bce", 2): 1.0, ("lr", 2): 1e-4, ("memory_bytes", 2): 7,
    ("val/AP", 3): 21.5, ("val/mask_iou", 3): 0.5,
    ("lr", 4): 1e-5, ("memory_bytes", 4): 8,
}  # fmt: skip


class Fake:
    """Writes what it was told as JSON, when it is closed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.file, self.points = folder / "events.out.tfevents.1", list[list[Any]]()

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.points.append([tag, global_step, scalar_value])

    def close(self) -> None:
        self.file.write_text(json.dumps(self.points))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"step": 5, "lo')
    return tmp_path / "run"


def test_the_numbers_are_those_of_the_stream(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "open_writer", Fake)
    for _ in range(2):  # the second call takes the place of the first
        assert tensorboard.main(runs=[run]) == [run / "tensorboard"]
        (file,) = (run / "tensorboard").iterdir()
        points = json.loads(file.read_text())
        assert len(points) == len(POINTS)
        assert {(tag, step): value for tag, step, value in points} == POINTS
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_without_the_package_the_error_names_the_extra(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *arguments)

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    result = CliRunner().invoke(app, ["tensorboard", str(run)])
    assert result.exit_code == 1
    assert "error: TensorBoard is not installed" in result.stderr
    assert "hint: pip install 'featcache[tensorboard]'" in result.stderr
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_a_run_without_numbers_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"none has no metrics\.jsonl"):
        tensorboard.main(runs=[run, tmp_path / "none"])


def test_event_files_hold_the_numbers_of_a_training(tmp_path: Path) -> None:
    """TensorBoard's own reader finds every number of metrics.jsonl, to its float32, and nothing else."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cache = write_discs(tmp_path / "cache", images=4)
    settings = {"steps": "4", "batch_size": "2", "hidden": "8", "roi": "8", "warmup": "0", "log_every": "1"}
    run = train.main(
        cache=cache, val_cache=cache, head="unet", run=tmp_path / "run", settings={**settings, "evaluate_every": "2"}
    )
    (folder,) = tensorboard.main(runs=[run])
    events = reader.EventAccumulator(str(folder)).Reload()
    found = {(tag, one.step): one.value for tag in events.Tags()["scalars"] for one in events.Scalars(tag)}
    wanted: dict[tuple[str, int], float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        flat = {**row, **{f"val/{name}": value for name, value in row.get("val", {}).items()}}
        for name in flat.keys() - {"step", "val", "best"}:
            if flat[name] is not None:
                wanted[name, row["step"]] = flat[name]
    assert {("loss", 1), ("lr", 4), ("data_wait", 3), ("val/AP", 2), ("val/AP", 4)} <= set(wanted)
    assert found == pytest.approx(wanted, rel=1e-6)
