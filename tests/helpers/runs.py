"""Helpers that several test files share."""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.commands import Result, call
from vidcls.data.manifest import digest_path
from vidcls.training.checkpoint import load_checkpoint

CLASSES = ["adult", "harmful", "safe"]


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"{name}.ckpt").state_dict


def same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def change_manifest(run: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Changes the table of a run's videos on purpose, which its digest would be in the way of."""
    path = run / "manifest.csv"
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)
    digest_path(path).unlink(missing_ok=True)


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def scalars(folder: Path) -> dict[str, list[float]]:
    log = events(folder)
    return {tag: [event.value for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def csv_source(demo_folder: Path, path: Path, keep: Callable[[str, str], bool]) -> Path:
    """A .csv of the demo videos for which keep(split, label) holds."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for video in sorted(demo_folder.rglob("*.mp4")):
            split, label = video.parts[-3:-1]
            if keep(split, label):
                writer.writerow([video, label, split])
    return path


def details_of(output: Path) -> dict[str, dict]:
    """The details in the journal by SHA-256, in the order in which they were written."""
    with closing(sqlite3.connect(output / "journal.sqlite")) as database:
        rows = database.execute("SELECT sha256, details FROM results ORDER BY id").fetchall()
    return {sha256: json.loads(details) for sha256, details in rows if details is not None}


def refused(result: Result, *words: str) -> None:
    """One clear line on stderr, exit code 2."""
    assert result.code == 2, f"exit code {result.code}: {result.stderr}"
    assert result.stderr.startswith("error: expected ") and result.stderr.count("\n") == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Polls; fails where the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode} before its time: {process.communicate()[1]}")
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.005)


def assert_same_result(run: Path, reference: Path) -> None:
    for name in ("last", "best"):
        assert same_weights(weights(run, name), weights(reference, name)), name
    one, two = metrics_of(run), metrics_of(reference)
    assert one.pop("timing").keys() == two.pop("timing").keys()
    assert one == two
    for name in ("predictions_val.csv", "predictions_test.csv", "manifest.csv", "history.csv"):
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name


def assert_same_curves(run: Path, reference: Path) -> None:
    """The dashboard too looks as if nothing had happened: no step missing, none twice."""
    one, two = scalars(run), scalars(reference)
    for tag in ("val/loss", "val/accuracy", "train/loss", "train/loss_step", "lr-AdamW"):
        assert one[tag] == two[tag], tag


def evaluate(folder: Path, *overrides: str) -> str:
    """`python evaluate.py run=FOLDER OVERRIDES`, which must succeed; what it printed."""
    result = call("evaluate.py", f"run={folder}", *overrides)
    assert result.code == 0, result.stderr
    return result.stdout


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def predict(run: Path, source: Path | str, output: Path, *overrides: str) -> Result:
    result = call("predict.py", f"run={run}", f"input={source}", f"output={output}", *overrides)
    assert result.code == 0, result.stderr
    return result


def rows_of(output: Path) -> pd.DataFrame:
    """predictions.csv as text, by path."""
    return pd.read_csv(output / "predictions.csv", keep_default_na=False, dtype=str).set_index("path")
