"""The GPU path, where there is a CUDA GPU."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.commands import call, start, start_train, train
from helpers.runs import CLASSES, metrics_of, table, wait_until

from experiments.tools import compose_train
from vidcls.training import loop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

GPU = ["trainer=gpu", "data.num_workers=1"]
FIXED = ["trainer.deterministic=warn", "trainer.benchmark=false"]


@pytest.fixture
def options(tiny: list[str]) -> list[str]:
    return [option for option in tiny if not option.startswith("trainer.accelerator")]


def run(folder: Path, *overrides: str) -> Path:
    result = train(*overrides, f"run_dir={folder}")
    assert result.code == 0, result.stderr
    return folder


def assert_same_predictions(one: Path, two: Path) -> None:
    assert (table(one)[CLASSES] == table(two)[CLASSES]).all(axis=None)


def test_frames_on_the_device_give_the_same_results(options: list[str], tmp_path: Path) -> None:
    random = [*options, *GPU, *FIXED, "augment=standard", "data.temporal_jitter=true", "data.store.num_frames=8"]
    one, two = run(tmp_path / "one", *random), run(tmp_path / "two", *random, "data.device_cache=0")
    for split in ("val", "test"):
        assert_same_predictions(one / f"predictions_{split}.csv", two / f"predictions_{split}.csv")


def test_the_default_trainer_repeats(options: list[str], tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", *options), run(tmp_path / "two", *options)
    assert_same_predictions(one / "predictions_test.csv", two / "predictions_test.csv")


@pytest.mark.parametrize("frozen", [False, True])
def test_evaluation_repeats_the_test(frozen: bool, options: list[str], tmp_path: Path) -> None:
    if frozen:  # with cached features
        import timm

        torch.save(timm.create_model("test_efficientnet", num_classes=0).state_dict(), tmp_path / "weights.pt")
        options = [option for option in options if not option.startswith("model.")]
        options += ["experiment=strong", "model.encoder.name=timm/test_efficientnet", "data.resolution=32"]
        options += ["data.num_frames=8", f"model.encoder.weights={tmp_path / 'weights.pt'}", "trainer.max_epochs=2"]
    folder = run(tmp_path / "run", *options, *GPU)
    result = call("evaluate.py", f"run={folder}", "split=test")
    assert result.code == 0, result.stderr
    assert_same_predictions(folder / "evaluations" / "test" / "predictions.csv", folder / "predictions_test.csv")


@pytest.mark.parametrize("changes", [[], ["callbacks=ema"], ["augment=strong"]], ids=str)
def test_a_killed_run_resumes_to_the_same_result(changes: list[str], options: list[str], tmp_path: Path) -> None:
    options = [*options, *GPU, *FIXED, "trainer.max_epochs=12", "seed=3", *changes]
    whole, killed = run(tmp_path / "whole", *options), tmp_path / "killed"
    process = start_train(*options, f"run_dir={killed}", cwd=tmp_path)
    wait_until((killed / "checkpoints" / "last.ckpt").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "metrics.json").exists()
    assert train(f"resume={killed}").code == 0
    for split in ("val", "test"):
        assert_same_predictions(whole / f"predictions_{split}.csv", killed / f"predictions_{split}.csv")


@pytest.mark.parametrize(
    "changes",
    [
        ["model=r3d_18", "data.resolution=32", "trainer.max_epochs=1"],
        ["model=mc3_18", "data.resolution=32", "trainer.max_epochs=1"],
        ["trainer.precision=16-mixed"],
        ["compile=true"],
        ["trainer=ddp_gpu", "trainer.devices=1", "data.num_workers=1"],  # NCCL, of a single process
    ],
    ids=lambda changes: changes[0],
)
def test_variants_train_and_evaluate(changes: list[str], options: list[str], tmp_path: Path) -> None:
    if changes[0].startswith("model="):
        options = [option for option in options if not option.startswith("model.")]
    folder = tmp_path / "run"
    training = [*options, *GPU, *changes, f"run_dir={folder}"]
    # In processes of their own: shapes are not checked there, which cannot be compiled.
    for script, overrides in (("train.py", training), ("evaluate.py", [f"run={folder}", "split=test"])):
        process = start(script, *overrides, cwd=tmp_path)
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    measured = metrics_of(folder)["test"]
    again = metrics_of(folder / "evaluations" / "test")["test"]
    assert again["loss"] == pytest.approx(measured["loss"], abs=1e-6) and again["n"] == measured["n"]


@pytest.mark.parametrize("changes", [[], ["callbacks=ema"]], ids=str)
def test_no_step_waits_for_the_gpu(changes: list[str], options: list[str], tmp_path: Path) -> None:
    """One that is not logged; those of the first epochs choose kernels."""
    overrides = [*options, *GPU, "trainer.log_every_n_steps=1000", "trainer.max_epochs=4", "data.batch_size=1"]
    overrides += ["~callbacks.progress", "+trainer.enable_progress_bar=false", *changes]
    cfg = compose_train(tmp_path / "run", *overrides)
    watched = 0

    class Watched(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, number: int) -> None:
            nonlocal watched
            watches = trainer.current_epoch >= 2 and 1 <= number < int(trainer.num_training_batches) - 2
            watched += watches
            torch.cuda.set_sync_debug_mode("warn" if watches else "default")

    datamodule = loop.build_datamodule(cfg)
    module = loop.build_module(cfg, datamodule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.fit(cfg, module, datamodule, [Watched()])
    waits = [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]
    assert watched >= 4 and waits == []


def test_waiting_for_data_is_measured_by_the_gpu(options: list[str], tmp_path: Path) -> None:
    waits = []
    for gigabytes in ("4", "0"):
        cache = f"data.device_cache={gigabytes}"
        folder = run(tmp_path / gigabytes, *options, *GPU, "trainer.max_epochs=3", "data.num_workers=0", cache)
        waits.append(metrics_of(folder)["timing"]["data_wait_fraction"])
    assert 0 < waits[0] < 1 and 0 < waits[1] < 1
