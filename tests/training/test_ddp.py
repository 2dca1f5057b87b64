"""Two devices, here two processes on the CPU: one run, every video counted once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed
from helpers.commands import ROOT, once, start_train, train
from helpers.runs import CLASSES, csv_source, metrics_of, same_weights, scalars, table, weights

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch comes without gloo, which joins processes on CPUs",
)

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
DDP = ["trainer=ddp", "trainer.devices=2"]


@pytest.fixture(scope="session")
def some_videos(shared: Path, demo_folder: Path) -> Path:
    """A .csv with 6 videos to train on, 3 to test on and 1 for validation."""

    def write(folder: Path) -> None:
        folder.mkdir()
        csv_source(demo_folder, folder / "videos.csv", lambda split, label: split != "val" or label == CLASSES[0])

    return once(shared, "some_videos", write) / "videos.csv"


@pytest.fixture(scope="session")
def options(tiny: list[str], some_videos: Path) -> list[str]:
    """Of runs whose two devices see together what one device sees."""
    return [*tiny, f"data.source={some_videos}", "model.dropout=0.0"]


@pytest.fixture(scope="session")
def two_devices(shared: Path, options: list[str]) -> Path:
    """The folder of a run on two devices, whose processes torchrun starts."""

    def run(folder: Path) -> None:
        folder.mkdir()
        overrides = [*options, *DDP, "data.batch_size=1", f"run_dir={folder / 'run'}"]
        process = start_train(*overrides, cwd=folder, launcher=TORCHRUN)
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0 and "sync_dist" not in stderr, stderr
        assert {path.name for path in folder.iterdir()} == {"run"}

    return once(shared, "two_devices", run) / "run"


def test_processes_of_one_launcher_agree_on_a_new_folder(tmp_path: Path) -> None:
    """By the process that has started them, so that Python must be a new one here."""
    (tmp_path / "name.py").write_text("from vidcls.cli import new_run_dir\nprint(new_run_dir('runs', None))\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *TORCHRUN, "name.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    one, other = done.stdout.split()
    assert one == other and re.fullmatch(r"runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]+", one)


def test_torchrun_needs_a_strategy(tiny: list[str], tmp_path: Path) -> None:
    """Otherwise each process would train alone, into one folder."""
    process = start_train(*tiny, f"run_dir={tmp_path / 'run'}", cwd=tmp_path, launcher=TORCHRUN)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode != 0 and "trainer=ddp trainer.devices=2 trainer.num_nodes=1. [torchrun]" in stderr


def test_each_video_counts_once(two_devices: Path) -> None:
    metrics, manifest = metrics_of(two_devices), table(two_devices / "manifest.csv")
    assert [metrics[split]["n"] for split in ("train", "val", "test")] == [6, 1, 3]
    for split in ("val", "test"):
        predictions = table(two_devices / f"predictions_{split}.csv")
        assert predictions["path"].tolist() == manifest[manifest["split"] == split]["path"].tolist()
        assert (predictions["label"] == predictions["predicted"]).mean() == metrics[split]["accuracy"]


def test_there_is_one_run(two_devices: Path) -> None:
    expected = {"config.yaml", "manifest.csv", "metrics.json", "environment.json", "checkpoints", "figures"}
    assert expected | {"tensorboard"} <= {path.name for path in two_devices.iterdir()}
    assert len(scalars(two_devices)["val/loss"]) == 3  # one value per epoch, not one per device


def test_both_devices_hold_the_same_weights(two_devices: Path) -> None:
    """Each device validated its share with its own weights; the best ones, of the first device, give the same loss."""
    assert metrics_of(two_devices)["val"]["loss"] == pytest.approx(min(scalars(two_devices)["val/loss"]), rel=1e-6)


def test_one_device_predicts_the_same(two_devices: Path, tmp_path: Path) -> None:
    """Resuming a finished run only tests again: here on one device, with the weights that two have trained."""
    run = tmp_path / "run"
    shutil.copytree(two_devices, run)
    config = run / "config.yaml"
    text = config.read_text()
    assert "devices: 2" in text and "strategy: ddp" in text
    config.write_text(text.replace("devices: 2", "devices: 1").replace("strategy: ddp", "strategy: auto"))
    with pytest.warns(UserWarning, match="2 until now, 1 from now on"):
        result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    assert same_weights(weights(run, "best"), weights(two_devices, "best"))
    before, after = (table(folder / "predictions_test.csv") for folder in (two_devices, run))
    assert after["path"].tolist() == before["path"].tolist()
    assert (after[CLASSES] - before[CLASSES]).abs().to_numpy().max() < 1e-6


def test_one_device_trains_the_same(two_devices: Path, options: list[str], tmp_path: Path) -> None:
    """Its batches hold what those of two devices hold together."""
    run = tmp_path / "run"
    result = train(*options, "data.batch_size=2", f"run_dir={run}")
    assert result.code == 0, result.stderr
    for name in ("val/loss", "val/auroc", "val/calibration_error", "train/loss", "train/accuracy"):
        assert scalars(run).get(name) == pytest.approx(scalars(two_devices).get(name), abs=1e-5)
    for split in ("train", "val", "test"):
        one, two = metrics_of(run)[split], metrics_of(two_devices)[split]
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5) and one["confusion"] == two["confusion"]


def test_a_dead_process_that_lightning_started_ends_the_run(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / name) for name in (".", "tests")))
    monkeypatch.setenv("VIDCLS_TEST_DIES", "1")
    dies = ["+callbacks.dies._target_=helpers.dying.DieInSecondEpoch", "data.batch_size=1", "trainer=ddp_sim"]
    process = start_train(*options, *dies, f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 2 and stderr.count("[lost-process]") == 1 and "Traceback" not in stderr, stderr


def test_a_dead_process_ends_the_run_which_can_be_resumed(
    two_devices: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / name) for name in (".", "tests")))
    monkeypatch.setenv("VIDCLS_TEST_DIES", "1")
    dies = ["+callbacks.dies._target_=helpers.dying.DieInSecondEpoch", "data.batch_size=1", "figures=false"]
    process = start_train(*options, *DDP, *dies, f"run_dir={run}", cwd=tmp_path, launcher=TORCHRUN)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode != 0
    assert len([line for line in stderr.splitlines() if "[lost-process]" in line]) == 1, stderr
    monkeypatch.delenv("VIDCLS_TEST_DIES")
    process = start_train(f"resume={run}", "trust=helpers", cwd=tmp_path, launcher=TORCHRUN)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert same_weights(weights(run), weights(two_devices))
    assert all(metrics_of(run)[split] == metrics_of(two_devices)[split] for split in ("train", "val", "test"))
    assert (run / "history.csv").read_bytes() == (two_devices / "history.csv").read_bytes()
