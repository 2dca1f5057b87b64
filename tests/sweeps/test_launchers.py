"""Sweeps beyond one job after the other, each in a process of its own: joblib, submitit, Ray, Optuna, two devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch.distributed
from helpers.commands import ROOT, TRAIN
from helpers.runs import metrics_of, table
from optuna.trial import TrialState


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Where nothing of a user's is: neither home nor temporary files."""
    (tmp_path / "home").mkdir()
    with tempfile.TemporaryDirectory(prefix="t") as short:  # Ray's sockets must not have long paths
        yield os.environ | {
            "OMP_NUM_THREADS": "1",
            "HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(ROOT),  # as if installed: submitit's processes do not start in the repository
            "TMPDIR": short,
            "RAY_TMPDIR": short,
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@pytest.fixture
def base(tiny: list[str], finished: Path) -> list[str]:
    """A tiny run's overrides, its videos decoded before, without those that the sweeps here vary."""
    varied = ("model.lstm", "trainer.max_epochs")
    return [*(text for text in tiny if not text.startswith(varied)), "trainer.max_epochs=1"]


def run(cwd: Path, environment: dict[str, str], *overrides: str, code: int = 0) -> str:
    """`python train.py OVERRIDES` in a session of its own, of which no process may be left; gives what it printed."""
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *overrides],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed, _ = process.communicate(timeout=250)
    assert process.returncode == code, printed
    deadline = time.monotonic() + 20
    while left := of_session(environment["TMPDIR"]):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert {path.name for path in cwd.iterdir()} == {"sweep", "home"}
    return printed


def of_session(temporary: str) -> list[str]:
    """The processes that have this folder for temporary files: whatever a test has started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == temporary:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # gone meanwhile, or not ours
            continue
    return found


def jobs(sweep: Path) -> dict[str, Any]:
    """The figures of each job; None where it failed."""
    folders = [path.parent for path in sorted(sweep.glob("*/job.json"))]
    return {job.name: metrics_of(job) if (job / "metrics.json").exists() else None for job in folders}


# ---- launchers

LAUNCHERS = {
    "parallel": ["hydra/launcher=parallel", "model.lstm.hidden_size=4,8,-1"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "model.lstm.hidden_size=4,-1"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.init.num_cpus=2", "model.lstm.hidden_size=4,-1"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_runs_all_jobs_and_records_what_failed(
    launcher: str, base: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    if launcher == "parallel":  # two jobs that want the same at the same time
        base = [
            *(text for text in base if not text.startswith("cache_dir")),
            f"cache_dir={tmp_path / 'home' / 'cache'}",
        ]
    printed = run(tmp_path, environment, "-m", *base, *LAUNCHERS[launcher], "hydra.sweep.dir=sweep", code=1)
    sweep = tmp_path / "sweep"
    figures = jobs(sweep)
    files = {"sweep.json", "multirun.yaml"} | ({".submitit"} if launcher == "submitit" else set())
    assert {path.name for path in sweep.iterdir()} == {*files, *figures}
    assert figures.pop("hidden_size=-1") is None
    assert list(figures) == (["hidden_size=4", "hidden_size=8"] if launcher == "parallel" else ["hidden_size=4"])
    assert all(metrics["val"]["n"] == 3 and metrics["test"] is None for metrics in figures.values())
    decoded = sorted(metrics["timing"]["videos_decoded"] for metrics in figures.values())
    assert decoded == ([0, 12] if launcher == "parallel" else [0])
    assert f"{len(figures)} of {len(figures) + 1} jobs done" in printed
    assert "failed: hidden_size=-1: expected model.lstm.hidden_size" in printed


# ---- a search

SEARCH = ["hydra/sweeper=optuna", "hydra.sweeper.seed=0", "optim.lr=tag(log,interval(1e-4,1e-2))"]


def study_of(sweep: Path) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{sweep}/study.db")


def test_a_search_goes_on(base: list[str], tmp_path: Path, environment: dict[str, str]) -> None:
    sweep = tmp_path / "sweep"
    command = ["-m", *base, *SEARCH, "model.lstm.hidden_size=choice(4,8)"]
    run(tmp_path, environment, *command, "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep")
    first = {path.parent.name: path.stat().st_mtime_ns for path in sweep.glob("*/metrics.json")}
    assert len(first) == len(study_of(sweep).trials) == 2
    printed = run(tmp_path, environment, *command, "hydra.sweeper.n_trials=4", "sweep.resume=sweep")
    assert "done before" not in printed and "continued" not in printed and "4 of 4 jobs done" in printed
    study, done = study_of(sweep), jobs(sweep)
    assert study.direction.name == "MAXIMIZE"
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert {name: (sweep / name / "metrics.json").stat().st_mtime_ns for name in first} == first
    told = {tuple(json.loads((sweep / name / "job.json").read_text())["knobs"].values()): name for name in done}
    assert len(told) == 4
    for trial in study.trials:
        assert set(trial.params) == {"optim.lr", "model.lstm.hidden_size"}
        assert 1e-4 <= trial.params["optim.lr"] <= 1e-2
        (name,) = (
            name for values, name in told.items() if values[0] == pytest.approx(trial.params["optim.lr"], rel=1e-9)
        )
        assert trial.value == done[name]["val"]["accuracy"]


def test_a_failed_job_does_not_end_a_search(base: list[str], tmp_path: Path, environment: dict[str, str]) -> None:
    sizes = ["hydra/sweeper=optuna", "hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler"]
    sizes += ["~hydra.sweeper.sampler.constant_liar", "hydra.sweeper.seed=1", "model.lstm.hidden_size=choice(-1,4)"]
    sizes += ["optim.lr=interval(0.001,0.01)", "hydra.sweeper.n_trials=5", "objective=loss", "hydra.sweep.dir=sweep"]
    printed = run(tmp_path, environment, "-m", *base, *sizes, code=1)
    study, done = study_of(tmp_path / "sweep"), jobs(tmp_path / "sweep")
    assert study.direction.name == "MINIMIZE"
    states = {-1: TrialState.FAIL, 4: TrialState.COMPLETE}
    assert len(study.trials) == len(done) == 5
    assert {trial.params["model.lstm.hidden_size"] for trial in study.trials} == {-1, 4}
    assert all(trial.state == states[trial.params["model.lstm.hidden_size"]] for trial in study.trials)
    losses = sorted(metrics["val"]["loss"] for metrics in done.values() if metrics)
    assert sorted(trial.value for trial in study.trials if trial.state == TrialState.COMPLETE) == losses
    assert study.best_value == losses[0]
    assert f"{len(losses)} of 5 jobs done" in printed


# ---- several devices


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch comes without gloo, which joins processes on CPUs",
)
def test_two_devices_in_each_job(base: list[str], tmp_path: Path, environment: dict[str, str]) -> None:
    ddp = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.sweep.dir=sweep"]
    printed = run(tmp_path, environment, "-m", *base, "model.lstm.hidden_size=4,8", *ddp)
    done = jobs(tmp_path / "sweep")
    assert list(done) == ["hidden_size=4", "hidden_size=8"] and "2 of 2 jobs done" in printed
    for name, metrics in done.items():
        assert metrics["val"]["n"] == 3 and metrics["test"] is None and metrics["train"] is None
        assert len(table(tmp_path / "sweep" / name / "predictions_val.csv")) == 3
        assert len(table(tmp_path / "sweep" / name / "history.csv")) == 1
