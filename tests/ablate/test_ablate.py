"""Many heads in one pass: each ends as it would alone, and the table tells what they cost and reach."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ablate_toy import BASELINE, SETTINGS, TABLE, alone, losses, read, run, same_weights, write
from discs import write_discs
from tiny import write_tiny
from typer.testing import CliRunner, Result

from featcache import Cache, Loader
from pipeline import ablate, evaluate, extract
from pipeline.cli import app
from pipeline.describe import Inputs, describe
from pipeline.errors import PipelineError, UsageError
from pipeline.training.checkpoint import load_head


def test_each_head_equals_the_one_trained_alone(toml: Path, cache: Path, tmp_path: Path) -> None:
    """Dropout, box jitter, point sampling, averaged weights and first weights: none feels the others."""
    outcome = run(toml, cache, tmp_path / "out", seeds=(0, 3))
    assert len(outcome.members) == 6
    pairs = list(alone(outcome, cache, tmp_path))
    for together, by_itself in pairs:
        assert same_weights(together, by_itself), together
        assert losses(together) == losses(by_itself)
        evaluate.main(cache=cache, run=by_itself)
        for name in ("metrics.json", "results.json", "quality.json"):
            assert (together / name).read_bytes() == (by_itself / name).read_bytes()
    first = {together.name.rpartition("-seed")[0]: together for together, _ in pairs if together.name.endswith("0")}
    for together, _ in pairs:
        assert same_weights(together, first[together.name.rpartition("-seed")[0]]) == together.name.endswith("0")


def test_each_batch_is_read_once_for_all_heads(
    toml: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = Cache.read
    monkeypatch.setattr(Cache, "read", lambda self, index, *rest: [reads.append(index), read(self, index, *rest)][1])
    monkeypatch.setattr(Loader, "__init__", _shallow(Loader.__init__))
    run(toml, cache, tmp_path / "out")
    ahead = 2 * 2  # two batches are read before they are asked for
    assert 7 * 2 + 6 <= len(reads) <= 7 * 2 + ahead + 6  # training, and once more the six images to evaluate
    reads.clear()
    run(toml, cache, tmp_path / "three", seeds=(0, 1, 2), settings={**SETTINGS, "order_seed": "0"})
    assert len(reads) <= 7 * 2 + ahead + 6  # nine heads


def _shallow(init: Any) -> Any:
    return lambda self, *args, **kwargs: init(self, *args, **{**kwargs, "depth": 1, "threads": 1})


def test_seeds_share_a_pass_only_with_one_order(toml: Path, cache: Path, tmp_path: Path) -> None:
    plan = ablate.plan
    for settings, passes in (({}, 3), ({"order_seed": "5"}, 1), ({"batch_size": "1"}, 3)):
        _, members = plan(str(toml), ablate.Cached(cache), tmp_path, steps="2", seeds=(0, 1, 2), settings=settings)
        assert len(ablate.groups(members)) == passes
    shared = run(toml, cache, tmp_path / "out", seeds=(0, 1), settings={**SETTINGS, "order_seed": "0"})
    assert all(same_weights(*pair) for pair in alone(shared, cache, tmp_path))


def test_rows_of_other_batch_sizes_views_and_steps(cache: Path, tmp_path: Path) -> None:
    rows = TABLE + "".join(
        f'[[rows]]\nname = "{name}"\nsettings = {{ {settings} }}\n'
        for name, settings in (
            ("batch 3", "batch_size = 3"),
            ("one view", 'views = ["orig"]'),
            ("held out", "holdout = 3"),
            ("longer", "steps = 5000"),
        )
    )
    file = write(tmp_path, rows.replace("[settings]", "[settings]\nsteps = 2000\nbatch_size = 2"))
    outcome = run(file, cache, tmp_path / "out", settings={}, steps="0.25%")
    assert [len(heads) for heads in ablate.groups(outcome.members).values()] == [4, 1, 1, 1]
    assert [member.row.recipe.train.steps for member in outcome.members] == [5, 5, 5, 5, 5, 5, 12]
    assert all(same_weights(*pair) for pair in alone(outcome, cache, tmp_path))
    images = {member.row.name: outcome.metrics[member.folder]["images"] for member in outcome.members}
    assert images == {**dict.fromkeys(images, 6), "held out": 2}


def test_what_was_done_is_not_done_again(toml: Path, cache: Path, tmp_path: Path) -> None:
    """A row added later is trained, the others are neither trained nor evaluated again."""
    out = tmp_path / "out"
    run(toml, cache, out)
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/*")}
    more = '[[rows]]\nname = "later"\nsettings = { image_layers = 2 }\n'
    outcome = run(write(tmp_path, TABLE + more), cache, out)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    (later,) = outcome.members[3:]
    assert set(outcome.metrics) == {member.folder for member in outcome.members}
    assert len(losses(later.folder)) == 2
    with pytest.raises(PipelineError, match=r"of another training \(lr: run has 0.001, now 0.1\)"):
        run(toml, cache, out, settings={**SETTINGS, "lr": "0.1"})
    last, new = outcome.members[2].folder, tmp_path / "new"
    shutil.copytree(last, new / last.name)
    with pytest.raises(PipelineError, match=f"{last.name} is a run of another training"):
        run(toml, cache, new, settings={**SETTINGS, "lr": "0.1"})
    assert [folder.name for folder in new.iterdir()] == [last.name]  # no other run is begun


def test_a_baseline_is_evaluated_once_whatever_the_seeds(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('family = "baseline"\nabout = "no parameters"\n[head]\nroi = 8\n')
    text = TABLE[: TABLE.index("[settings]")] + BASELINE
    outcome = run(write(tmp_path, text), cache, tmp_path / "out", seeds=(0, 1))
    assert [member.folder.name for member in outcome.members] == ["baseline"]
    (row,) = read(tmp_path / "out" / "table.csv")
    assert (row["params"], row["step_seconds"], row["failed"]) == ("0", "", "")
    assert float(row["AP"]) == pytest.approx(outcome.metrics[tmp_path / "out" / "baseline"]["segm"]["AP"])


def test_the_table_has_means_spreads_costs_and_the_papers_cells(toml: Path, cache: Path, tmp_path: Path) -> None:
    val = write_discs(tmp_path / "val", images=4, seed=9)
    out = tmp_path / "out"
    outcome = run(toml, cache, out, seeds=(0, 1, 2), settings={**SETTINGS, "order_seed": "0"}, val_cache=val)
    rows = read(out / "table.csv")
    assert [row["name"] for row in rows] == ["U of 2, dropout", "paper's encoder", "no image encoder"]
    for row in rows:
        found = [outcome.metrics[m.folder] for m in outcome.members if m.row.name == row["name"]]
        values = torch.tensor([metrics["segm"]["AP50"] for metrics in found], dtype=torch.float64)
        assert [metrics["images"] for metrics in found] == [4, 4, 4]
        assert float(row["AP50"]) == pytest.approx(values.mean().item(), abs=1e-4)
        assert float(row["AP50_std"]) == pytest.approx(values.std().item(), abs=1e-4)
        head, _ = load_head(next(m.folder for m in outcome.members if m.row.name == row["name"]))
        assert int(row["params"]) == sum(parameter.numel() for parameter in head.parameters())
        assert float(row["step_seconds"]) > 0
        assert int(row["step_memory_bytes"]) > 12 * int(row["params"])  # weights and two moments are in it
    assert [row["paper_AP"] for row in rows] == ["44.0", "45.2", ""]
    assert [row["paper_params"] for row in rows] == ["1.51", "", ""]
    text = (out / "table.md").read_text()
    assert text.startswith("# Small heads\n")
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {len(line) for line in table} == {len(table[0])}
    assert "±" in table[2][1]
    assert "in brackets the paper's figures, of hdetr-r50" in text
    assert "(44.0)" in table[2][1]
    assert "learnt from these very images" not in text
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_images_of_its_own_the_table_says_so(toml: Path, cache: Path, tmp_path: Path) -> None:
    assert "learnt from these very images" in run(toml, cache, tmp_path / "a", steps="1").table
    held = run(toml, cache, tmp_path / "b", steps="1", settings={**SETTINGS, "holdout": "3"})
    assert "learnt from these very images" not in held.table
    assert "2 images of" in held.table
    assert "held out from the training" in held.table


def test_a_val_cache_of_another_detector_is_refused_before_training(toml: Path, cache: Path, tmp_path: Path) -> None:
    other = write_discs(tmp_path / "other", images=2, name="another")
    with pytest.raises(PipelineError, match="name is 'another'"):
        run(toml, cache, tmp_path / "out", val_cache=other)
    assert not (tmp_path / "out").exists()


def test_evaluations_on_the_way_are_refused(toml: Path, cache: Path, tmp_path: Path) -> None:
    words = ("ablate", toml, "--cache", cache, "--out", tmp_path / "out", "evaluate_every=5")
    for more in ((), ("--dry-run",)):
        result = call(*words, *more)
        assert result.exit_code == 2
        assert "error: ablate evaluates every head once, at the end: evaluate_every is for train" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_head_that_does_not_fit_the_features_fails_alone(cache: Path, tmp_path: Path) -> None:
    """As a row of the paper's Table 15 does on a cache of one encoder layer."""
    row = '[[rows]]\nname = "layer 2"\nsettings = { encoder_layer = 2 }\n'
    outcome = run(write(tmp_path, TABLE + row), cache, tmp_path / "out", steps="1", seeds=(0, 1))
    assert len(outcome.metrics) == 6
    ((folder, problem),) = outcome.failures.items()
    assert folder.name == "layer-2"
    assert "extra_encoder_layers = [2]" in problem
    assert "| layer 2 | failed |" in outcome.table
    none = run(write(tmp_path, TABLE[: TABLE.index("[[rows]]")] + row), cache, tmp_path / "none", steps="1")
    assert (tmp_path / "none" / "table.md").read_text().endswith(none.table)


def test_rows_of_other_detectors_need_caches_of_their_own(cache: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"steps": None, "seeds": (), "settings": {}}
    source = ablate.Cached(cache)
    own = TABLE.replace('name = "no image encoder"', 'name = "no image encoder"\ndetector = "toy"')
    ablation, members = ablate.plan(str(write(tmp_path, own)), source, tmp_path, **arguments)
    assert [member.row.name for member in members] == [row.name for row in ablation.rows] == ["no image encoder"]
    other = own.replace('"toy"', '"another"')  # none of them is of this cache's: a table for comparing heads
    assert len(ablate.plan(str(write(tmp_path, other)), source, tmp_path, **arguments)[1]) == 3


def test_rows_that_differ_in_the_detector_alone_are_one_head_on_another_cache(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: dict[str, Any] = {"steps": None, "seeds": (), "settings": {}}
    source = ablate.Cached(cache)
    for table in ("table06", "table11"):
        with pytest.raises(PipelineError, match=r"of toy: 'H-DETR R50' \(hdetr-r50\), 'H-DETR Swin-L' \("):
            ablate.plan(table, source, tmp_path, **arguments)
    twins = "".join(f'[[rows]]\nname = "{name}"\ndetector = "{name}"\n' for name in ("one", "two"))
    _, members = ablate.plan(str(write(tmp_path, TABLE + twins)), source, tmp_path, **arguments)
    assert len(members) == 3
    assert "rows of other detectors than toy: 'one' (one), 'two' (two)" in capsys.readouterr().err
    assert len(ablate.plan("table05", source, tmp_path, **arguments)[1]) == 4  # all rows of one other detector


def test_rows_of_one_detector_with_other_weights_are_one_head_on_its_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ablate.Cached(write_discs(tmp_path / "cache", images=2, name="hdetr-r50"))
    _, members = ablate.plan("table06", source, tmp_path, steps=None, seeds=(), settings={})
    assert [member.row.name for member in members] == ["H-DETR R50"]
    words = capsys.readouterr().err
    assert "rows of other detectors than hdetr-r50: 'H-DETR Swin-L' (hdetr-swin-l), 'H-DETR Swin-L, O365'" in words
    assert "on one cache they are a head that is there already: 'H-DETR R50, O365'\n" in words


def test_multiply_adds_are_those_of_describe(toml: Path, tmp_path: Path) -> None:
    """On a cache that says how images were resized."""
    cache = extract.main(**write_tiny(tmp_path / "data").arguments, cache=tmp_path / "cache")
    outcome = run(toml, cache, tmp_path / "out", steps="1")
    inputs = Inputs.of_cache(Cache(cache).spec)
    for row, member in zip(read(tmp_path / "out" / "table.csv"), outcome.members, strict=True):
        assert int(row["macs"]) == describe(member.row.recipe, inputs).macs > 0
        assert int(row["params"]) == describe(member.row.recipe, inputs).params
    assert "| multiply-adds (G) |" in outcome.table


def test_settings_that_leave_nothing_to_compare_are_refused(cache: Path, tmp_path: Path) -> None:
    """Table 10 with one grid for all would be three times the same head."""
    arguments: dict[str, Any] = {"steps": "3", "seeds": ()}
    with pytest.raises(UsageError, match="'16 x 16' and '32 x 32' become the same head"):
        ablate.plan("table10", ablate.Cached(cache), tmp_path, settings={"roi": 16}, **arguments)
    with pytest.raises(UsageError, match="become the same head"):  # steps are what table 9 varies
        ablate.plan("table09", ablate.Cached(cache), tmp_path, settings={}, **arguments)


def test_settings_of_the_command_line(
    toml: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: dict[str, Any] = {"steps": "3", "seeds": (), "settings": {"lr": "0.5", "dropout": "0.3"}}
    _, members = ablate.plan(str(toml), ablate.Cached(cache), tmp_path, **arguments)
    trains = [member.row.recipe.train for member in members]
    assert [(one.steps, one.lr) for one in trains] == [(3, 0.5)] * 3
    assert [member.row.recipe.head.dropout for member in members] == [0.3] * 3
    assert "one dropout for all replaces what the rows vary: 0.0, 0.1, 0.2" in capsys.readouterr().err
    for wrong, words in (
        ({"settings": {"droput": "0.3"}}, r"unknown setting 'droput'[\s\S]*'dropout'"),
        ({"settings": {"hidden": "17"}}, "row 'U of 2, dropout': .*17"),
        ({"steps": "many"}, "--steps many"),
        ({"seeds": (1, 1)}, "would share the run directory"),
    ):
        with pytest.raises(PipelineError, match=words):
            ablate.plan(str(toml), ablate.Cached(cache), tmp_path, **{**arguments, **wrong})


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_dry_run_shows_heads_and_passes_and_writes_nothing(toml: Path, cache: Path, tmp_path: Path) -> None:
    shown = call("ablate", toml, "--cache", cache, "--out", tmp_path / "out", "--seeds", "0,1", "--dry-run")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["head", "seed", "parameters", "steps", "pass", "run"]
    assert len(lines) == 1 + 6 + 2  # the heads and the passes, one for each seed
    assert lines[-1].startswith("pass 2: 3 heads, batches of 8, views orig hflip, order of seed 1")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_table_and_fails_at_the_end(cache: Path, tmp_path: Path) -> None:
    bad = write(tmp_path, TABLE + '[[rows]]\nname = "too fast"\nsettings = { lr = 1e30 }\n')
    words = ("ablate", bad, "--cache", cache, "--out", tmp_path / "out", "--batch-size", 2, "--steps", 4)
    failed = call(*words)
    assert failed.exit_code == 1
    assert failed.stdout == (tmp_path / "out" / "table.md").read_text().partition("\n\n")[2]
    assert "error: 1 of 4 did not come to the end: head 'too fast' (seed 0)" in failed.stderr
    assert "hint: " in failed.stderr
    good = call(*words[:1], write(tmp_path, TABLE), *words[2:])
    assert (good.exit_code, good.stdout.splitlines()[0][:8]) == (0, "| head |")
    assert call(*words, "--seeds", "0,x").exit_code == 2


def test_without_matplotlib_there_is_a_table_and_no_plot(
    toml: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run(toml, cache, tmp_path / "out", steps="1")
    assert "no plot.png: matplotlib" in capsys.readouterr().err
    assert (tmp_path / "out" / "table.md").exists()
    assert not (tmp_path / "out" / "plot.png").exists()
