"""A model from outside the package is trained, evaluated, predicted with, exported and swept by the entry points."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.commands import call, train, train_once
from helpers.runs import CLASSES, refused, table

OWN = ["model=custom", "model._target_=experiments.own_model.tiny3d.Tiny3D"]


def without_lstm(tiny: list[str]) -> list[str]:
    return [text for text in tiny if not text.startswith("model.")]


@pytest.fixture(scope="module")
def own_run(shared: Path, tiny: list[str]) -> Path:
    return train_once(shared, "own_model", *without_lstm(tiny), *OWN, "+model.width=4")


def test_it_is_loaded_only_if_trusted(own_run: Path, demo_folder: Path, tmp_path: Path) -> None:
    refused(call("evaluate.py", f"run={own_run}"), "[untrusted-model]")
    refused(
        call("predict.py", f"run={own_run}", f"input={demo_folder}", f"output={tmp_path / 'out'}"), "[untrusted-model]"
    )
    refused(call("export.py", f"run={own_run}"), "[untrusted-model]")


def test_it_is_evaluated_as_it_was_tested(own_run: Path) -> None:
    result = call("evaluate.py", f"run={own_run}", "split=test", "trust=experiments")
    assert result.code == 0, result.stderr
    evaluated = json.loads((own_run / "evaluations" / "test" / "metrics.json").read_text())["test"]
    tested = json.loads((own_run / "metrics.json").read_text())["test"]
    assert {name: evaluated[name] for name in tested} == tested


def test_it_predicts_and_is_exported(own_run: Path, demo_folder: Path, tmp_path: Path) -> None:
    videos = demo_folder / "rtp" / "test"
    result = call(
        "predict.py", f"run={own_run}", f"input={videos}", f"output={tmp_path / 'out'}", "trust=[experiments]"
    )
    assert result.code == 0, result.stderr
    found = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype=str).set_index("path")
    tested = pd.read_csv(own_run / "predictions_test.csv", dtype=str).set_index("path")
    assert len(found) == len(tested) == 3
    for path, row in tested.iterrows():
        assert found.loc[str(path).removeprefix("rtp/test/"), CLASSES].tolist() == row[CLASSES].tolist()
    result = call("export.py", f"run={own_run}", f"output={tmp_path / 'own.onnx'}", "trust=experiments")
    assert result.code == 0, result.stderr
    assert (tmp_path / "own.onnx").stat().st_size > 1000


def test_it_is_swept(tiny: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    result = train(
        "-m", *without_lstm(tiny), *OWN, "+model.width=2,4", "trainer.max_epochs=1", f"hydra.sweep.dir={sweep}"
    )
    assert result.code == 0, result.stderr
    assert sorted(path.parent.name for path in sweep.glob("*/metrics.json")) == ["width=2", "width=4"]
    result = call("report.py", f"sweep={sweep}")
    assert result.code == 0, result.stderr
    assert len(table(sweep / "report" / "ranking.csv")) == 2


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (["model=custom", "model._target_=experiments.own_model.tiny3d.Tiny4D"], "model._target_"),
        ([*OWN, "+model.depth=4"], "model-options"),
        (["model=custom", "model._target_=json.dumps", "+model.obj=3"], "not-a-network"),
    ],
)
def test_mistakes_are_one_clear_line(overrides: list[str], code: str, tiny: list[str], tmp_path: Path) -> None:
    refused(train(*without_lstm(tiny), *overrides, f"run_dir={tmp_path / 'run'}"), f"[{code}]")
