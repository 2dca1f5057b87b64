"""Reports of sweeps written by hand; the winner that is tested is a real run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.commands import ROOT, call
from helpers.runs import change_manifest, refused
from helpers.written_sweeps import FRAMES, Writer, report, sampled, write_json

from vidcls.sweeps.sweep_report import repeat_command
from vidcls.sweeps.tables import (
    Sweep,
    read_sweep,
)


def test_reading_a_sweep_imports_no_torch_and_no_decoder() -> None:
    rooms = "jobs, vidcls.sweeps.tables, vidcls.sweeps.winner"
    code = f"import sys, vidcls.sweeps.{rooms}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "decord", "av", "matplotlib"} & set(run.stdout.split())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.pictures
def test_the_report_is_written_twice_with_the_same_bytes_and_nowhere_else(grid: Writer) -> None:
    before = files(grid.folder)
    first = report(grid.folder)
    assert first.code == 0, first.stderr
    after = files(grid.folder)
    tables, pictures = ("jobs", "ranking", "effects"), ("effects", "heatmap", "pareto", "curves")
    names = {f"report/{name}.csv" for name in tables} | {f"report/{name}.png" for name in pictures}
    assert after.keys() - before.keys() == names | {"report/report.md"}
    assert all(after[name] == content for name, content in before.items())
    assert report(grid.folder).stdout == first.stdout and files(grid.folder) == after
    jobs = pd.read_csv(grid.folder / "report" / "jobs.csv")
    assert len(jobs) == 8 and jobs["objective"].sum() == pytest.approx(4.8)
    text = (grid.folder / "report" / "report.md").read_text()
    assert all(f"]({name}.png)" in text for name in pictures)
    assert "8 done, 0 failed, 0 unfinished, 0 not started of 8 jobs" in text
    assert re.search(r"\| 1 +\| 16 +\| 32 +\| 2 +\| 0.700 ± 0.141 +\|", text)
    assert "num_frames=16" in first.stdout and "0.700 ± 0.141" in first.stdout


def test_an_unfinished_sweep_is_reported(ragged: Writer) -> None:
    result = report(ragged.folder)
    assert result.code == 0, result.stderr
    text = (ragged.folder / "report" / "report.md").read_text()
    assert "3 done, 1 failed, 1 unfinished, 2 not started of 7 jobs" in text
    assert "The sweep is not finished: the order may change." in text
    assert "CUDA out of \\| memory \\<b\\>" in text and "CUDA out of | memory <b>" in result.stdout
    assert "1 (1 failed)" in text
    command = repeat_command(read_sweep(ragged.folder), "model=cnn_lstm,gradient_clip_val=None,channels=[8, 16],seed=0")
    assert shlex.split(command)[-1] == "data.source='/my videos/a b'"
    assert (ragged.folder / "report" / "heatmap.png").is_file()


def test_nothing_finished_is_said_in_a_line(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "new", [FRAMES], planned=2)
    assert report(writer.folder).code == 0  # no job has begun
    writer.job({FRAMES: 8})
    result = report(writer.folder)
    assert result.code == 0 and "nothing to rank" in result.stdout
    assert files(writer.folder).keys() >= {"report/jobs.csv", "report/report.md"}
    assert not {name for name in files(writer.folder) if name.endswith(".png")}


def test_what_an_earlier_report_drew_does_not_stay(grid: Writer) -> None:
    report(grid.folder)
    for path in grid.folder.glob("num_frames=*"):
        (path / "metrics.json").unlink()
        (path / "history.csv").unlink()
    assert report(grid.folder).code == 0
    assert {path.suffix for path in (grid.folder / "report").iterdir()} == {".csv", ".md"}


def test_a_samplers_study_is_reported(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "study").folder
    result = report(folder)
    assert result.code == 0, result.stderr
    text = (folder / "report" / "report.md").read_text()
    assert "16 done, 0 failed, 0 unfinished of 16 jobs so far" in text
    assert re.search(r"\| model +\| cnn\\_lstm +\| 8 +\|", text)
    assert "Values that hardly repeat are in the plot alone: optim.lr." in text
    assert not (folder / "report" / "heatmap.png").exists()
    assert "The best 10 of 16 configurations" in result.stdout


def test_an_option_that_the_best_have_in_common_is_shown(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "study", ["optim.lr", "model"], planned=None)
    for place in range(24):
        writer.done({"optim.lr": 1e-4 * (1 + place), "model": ("cnn_lstm", "cnn_mean")[place // 12]}, place / 24)
    result = report(writer.folder)
    assert result.code == 0, result.stderr
    (head,) = (line for line in result.stdout.splitlines() if "rank" in line and "seeds" in line)
    assert "model" in head and "cnn_mean" in result.stdout


@pytest.mark.parametrize("options", [{}, {"seed": 3}, {FRAMES: 8}])
def test_a_sweep_of_one_job_is_reported(tmp_path: Path, options: dict[str, int]) -> None:
    writer = Writer(tmp_path / "one", list(options), planned=1)
    writer.done(options | {"job": 0}, 0.5).rename(writer.folder / "0")
    write_json(writer.folder / "0" / "job.json", {"knobs": options, "overrides": []})
    result = report(writer.folder)
    assert result.code == 0 and "0.500" in result.stdout, result.stderr
    assert (writer.folder / "report" / "effects.png").exists() == bool(options)


def test_what_is_no_sweep_is_refused(tmp_path: Path, ragged: Writer) -> None:
    refused(report(tmp_path), "[no-sweep]")
    refused(call("report.py", "sweep=[]"), "[sweep]")
    assert not list(tmp_path.glob("report"))
    refused(call("report.py"), "[missing-option]")
    (ragged.folder / "model=cnn_mean,gradient_clip_val=1.0,channels=[8, 16],seed=0" / "metrics.json").write_text("{")
    refused(report(ragged.folder), "[damaged-metrics]")
    (ragged.folder / "sweep.json").write_text("[]")
    refused(report(ragged.folder), "[damaged-sweep]")


@pytest.mark.parametrize(
    ("key", "value", "code"), [("format", 2, "sweep-format"), ("objective", "recall", "objective")]
)
def test_a_sweep_of_another_kind_is_refused(grid: Writer, key: str, value: Any, code: str) -> None:
    about = json.loads((grid.folder / "sweep.json").read_text())
    write_json(grid.folder / "sweep.json", about | {key: value})
    refused(report(grid.folder), f"[{code}]")


# ---- the one test


@pytest.fixture
def real(finished: Path, tmp_path: Path) -> Callable[[], Sweep]:
    """A sweep of two jobs, both copies of a real run, the second better on val."""
    writer = Writer(tmp_path / "real", ["seed"], planned=2)
    for seed, value in ((0, 0.2), (1, 0.3)):
        shutil.copytree(finished, writer.done({"seed": seed}, value), dirs_exist_ok=True)
        writer.done({"seed": seed}, value)
    return lambda: read_sweep(writer.folder)


def test_the_winner_is_tested_once(real: Callable[[], Sweep], finished: Path) -> None:
    folder = real().folder
    result = report(folder, "test_best=true")
    assert result.code == 0, result.stderr
    tested = json.loads((folder / "test.json").read_text())
    truth = json.loads((finished / "metrics.json").read_text())["test"]
    assert {name: tested[name] for name in ("accuracy", "accuracy_ci95", "macro_f1", "n")} == {
        name: truth[name] for name in ("accuracy", "accuracy_ci95", "macro_f1", "n")
    }
    assert (tested["job"], tested["objective"], tested["val_value"]) == ("seed=1", "accuracy", 0.3)
    assert tested["when"].endswith("+00:00") and tested["value"] == truth["accuracy"]
    assert f"accuracy {truth['accuracy']:.3f}" in (folder / "report" / "report.md").read_text()
    kept = (folder / "test.json").read_bytes()
    (folder / "seed=1" / "checkpoints" / "best.ckpt").unlink()  # nothing is computed again
    again = report(folder, "test_best=true")
    assert again.code == 0 and "seed=1 reached accuracy" in again.stdout
    assert (folder / "test.json").read_bytes() == kept
    Writer(folder, ["seed"], planned=3).done({"seed": 2}, 0.9)
    refused(report(folder, "test_best=true"), "[test-set-used]", "seed=1", "seed=2")
    assert "no longer the winner" in report(folder).stdout
    assert (folder / "test.json").read_bytes() == kept


def test_a_sweep_without_test_videos_is_refused(real: Callable[[], Sweep]) -> None:
    folder = real().folder
    change_manifest(folder / "seed=1", lambda rows: rows.assign(split=rows["split"].replace("test", "train")))
    refused(report(folder, "test_best=true"), "[empty-split]")
    assert not (folder / "test.json").exists()


def test_an_unfinished_sweep_is_not_tested(grid: Writer, ragged: Writer, tmp_path: Path) -> None:
    refused(report(ragged.folder, "test_best=true"), "[unfinished-sweep]")
    refused(report(ragged.folder, "test_best=no"), "[test_best]")  # a text, and so true
    for path in grid.folder.glob("num_frames=*"):
        (path / "metrics.json").rename(path / "error.txt")
    refused(report(grid.folder, "test_best=true"), "[no-winner]")
    (grid.folder / "test.json").write_text("{}")
    refused(report(grid.folder), "[damaged-test]")
