"""What a run prints at its end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from vidcls.training.artifacts import print_summary


def printed(folder: Path) -> str:
    split = {"accuracy": 0.85, "accuracy_ci95": [0.791, 0.898], "n": 1234}
    split |= {"macro_f1": 0.849, "auroc": 0.919, "calibration_error": 0.052, "loss": 2.345}
    timing = {"clips_per_second": 20.0, "epoch_seconds": 3.0, "data_wait_fraction": 0.3}
    solved = {"C": 0.003, "out_of_fold": split}
    metrics = {"train": split, "val": split, "test": None, "best_epoch": 1, "timing": timing}
    metrics["logistic_regression"] = solved
    text = io.StringIO()
    print_summary(metrics, "val/loss", folder, Console(file=text, width=80))
    return text.getvalue()


def test_no_metric_is_cut_in_80_columns(tmp_path: Path) -> None:
    text = printed(tmp_path)
    assert "0.850 (0.79 to 0.90)" in text and "2.345" in text and "…" not in text


def test_the_dashboard_that_is_named_shows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere, usual = tmp_path / "elsewhere", tmp_path / "runs" / "train" / "a"
    assert "Dashboard" not in printed(elsewhere)  # another logger, or none
    for folder in (elsewhere, usual):
        (folder / "tensorboard").mkdir(parents=True)
    assert f"Dashboard: tensorboard --logdir {elsewhere}" in printed(elsewhere)
    assert "Dashboard: make tensorboard" in printed(usual)
