"""A job of a search ends early where it is behind the jobs before it, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pandas as pd
import pytest
from helpers.commands import train
from optuna.trial import TrialState, create_trial

PRUNING = ["callbacks=pruning", "callbacks.pruning.pruner.n_startup_trials=1"]
PRUNING += ["callbacks.pruning.pruner.n_warmup_steps=0"]


def searched(folder: Path, earlier: float, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    """A search whose first job had the figure ``earlier`` after each epoch, and whose second runs in this process."""
    storage = f"sqlite:///{folder}/study.db"
    study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize")
    study.add_trial(create_trial(value=earlier, intermediate_values={epoch: earlier for epoch in range(3)}))
    address = {"storage": storage, "study_name": "sweep", "trial": study.ask()._trial_id}
    monkeypatch.setenv("OPTUNA_TRIAL", json.dumps(address))
    return study


@pytest.mark.parametrize(("earlier", "epochs"), [(2.0, 1), (-1.0, 3)])
def test_a_job_stops_where_it_is_behind(
    earlier: float, epochs: int, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = searched(tmp_path, earlier, monkeypatch)
    result = train(*tiny, *PRUNING, f"run_dir={tmp_path / 'run'}")
    assert result.code == 0, result.stderr
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert len(history) == epochs
    (job,) = study.get_trials(states=[TrialState.RUNNING])  # the sweeper tells how it ended
    assert list(job.intermediate_values.values()) == pytest.approx(list(history["val/accuracy"]))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]["n"] > 0


def test_nothing_is_behind_before_the_first_validation(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = searched(tmp_path, 2.0, monkeypatch)
    rarely = ["+trainer.check_val_every_n_epoch=2", "trainer.max_epochs=2"]
    result = train(*tiny, *PRUNING, *rarely, f"run_dir={tmp_path / 'run'}")
    assert result.code == 0, result.stderr
    (job,) = study.get_trials(states=[TrialState.RUNNING])
    assert list(job.intermediate_values) == [1]


def test_outside_a_search_nothing_is_behind(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTUNA_TRIAL", raising=False)
    result = train(*tiny, *PRUNING, f"run_dir={tmp_path / 'run'}")
    assert result.code == 0, result.stderr
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 3
