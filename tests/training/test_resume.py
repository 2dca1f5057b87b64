"""kill -9, Ctrl-C, and what resume= makes of it: the same result as if nothing had happened."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers.commands import start_train, train, train_once
from helpers.runs import (
    assert_same_curves,
    assert_same_result,
    change_manifest,
    metrics_of,
    refused,
    wait_until,
)
from omegaconf import OmegaConf

from vidcls.training.run_config import check_unchanged

# All that is random in training is on: what resumes here resumes anywhere. Figures are not.
RANDOM = [
    "trainer.max_epochs=8",
    "figures=false",
    "augment=strong",
    "augment.cutmix=1.0",
    "data.sampler=balanced",
    "callbacks=ema",
    "data.store.num_frames=8",
    "data.temporal_jitter=true",
    "optim.schedule=cosine",
    "seed=3",
]


@pytest.fixture(scope="session")
def uninterrupted(shared: Path, tiny: list[str]) -> Path:
    """The folder of a run with all that is random, which nothing interrupted."""
    return train_once(shared, "uninterrupted", *tiny, *RANDOM)


def test_kill_9_in_training(uninterrupted: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_train(*tiny, *RANDOM, f"run_dir={run}", cwd=tmp_path)
    last = run / "checkpoints" / "last.ckpt"
    versions: set[int] = set()

    def trained_enough() -> bool:
        if last.exists():
            versions.add(last.stat().st_mtime_ns)
        return len(versions) >= 3

    wait_until(trained_enough, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (run / "metrics.json").exists()
    result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    assert_same_result(run, uninterrupted)
    assert_same_curves(run, uninterrupted)


@pytest.mark.parametrize("option", ["data.num_workers=0", "data.num_workers=1", "trainer.precision=64-true"])
def test_loader_processes_fetch_ahead_what_is_trained_on(option: str, tiny: list[str], tmp_path: Path) -> None:
    """They are started before Lightning says with which epoch a resumed run goes on. No digit of a weight is lost."""
    whole, run, options = tmp_path / "whole", tmp_path / "run", [*tiny, *RANDOM, option]
    options.append("optim.schedule=constant")  # which does not depend on the number of epochs
    for folder, epochs in ((whole, 2), (run, 1)):
        result = train(*options, f"trainer.max_epochs={epochs}", f"run_dir={folder}")
        assert result.code == 0, result.stderr
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 1", "max_epochs: 2"))
    result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    assert_same_result(run, whole)


def test_logger_csv_keeps_what_it_has(tiny: list[str], tmp_path: Path) -> None:
    """Lightning's CSVLogger would begin its file anew."""
    run = tmp_path / "run"
    assert train(*tiny, "logger=csv", "trainer.max_epochs=2", f"run_dir={run}").code == 0
    before = pd.read_csv(run / "csv" / "metrics.csv")
    with (run / "csv" / "metrics.csv").open("a") as file:
        file.write("0.5,0")  # of a run that was killed while it wrote
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("max_epochs: 2", "max_epochs: 3"))
    assert train(f"resume={run}").code == 0
    logged = pd.read_csv(run / "csv" / "metrics.csv")
    pd.testing.assert_frame_equal(logged[: len(before)], before, check_like=True)
    assert len(before) < len(logged) and logged["train/loss"].notna().sum() == 3


def test_kill_9_in_ingest(finished: Path, tiny: list[str], tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    overrides = [text for text in tiny if not text.startswith("cache_dir")]
    process = start_train(*overrides, f"cache_dir={cache}", f"run_dir={run}", cwd=tmp_path)
    wait_until(lambda: len(list(cache.glob("store/**/*.safetensors"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stored = {path: path.stat().st_mtime_ns for path in cache.glob("store/**/*.safetensors")}
    assert not (run / "manifest.csv").exists()
    result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    assert all(path.stat().st_mtime_ns == written for path, written in stored.items())  # decoded once
    assert len(list(cache.glob("store/**/*.safetensors"))) == 12
    assert_same_result(run, finished)


def test_ctrl_c_in_training(uninterrupted: Path, tiny: list[str], tmp_path: Path) -> None:
    for attempt in range(3):  # on a busy machine the signal may come when the run is over
        run = tmp_path / f"a run {attempt}"
        process = start_train(*tiny, *RANDOM, f"run_dir='{run}'", cwd=tmp_path)
        wait_until((run / "checkpoints" / "last.ckpt").exists, process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=200)
        if process.returncode != 0:
            break
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1].endswith(f"train.py resume='{run}'")
    assert not (run / "metrics.json").exists()
    result = train(f"resume='{run}'")
    assert result.code == 0, result.stderr
    assert_same_result(run, uninterrupted)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def altered(path: Path) -> None:
    """One bit in the middle of the weights, which torch itself reads without a word."""
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 2000] ^= 64
    path.write_bytes(content)


def copy_of(run: Path, folder: Path) -> Path:
    """A run folder at another place, as if it had been made there."""
    shutil.copytree(run, folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(run), str(folder)))
    return folder


def test_resuming_a_finished_run_changes_nothing(finished: Path, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path / "run")
    result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    assert_same_result(run, finished)
    assert metrics_of(run)["timing"]["clips_per_second"] == metrics_of(finished)["timing"]["clips_per_second"]
    assert_same_curves(run, finished)


def test_a_moved_run_resumes_where_it_is(finished: Path, tmp_path: Path) -> None:
    old, run = copy_of(finished, tmp_path / "old"), tmp_path / "num_frames=8,seed=1: moved (1)"  # as of a sweep's job
    shutil.move(old, run)  # its config.yaml names the old place
    assert train(f"resume={run}").code == 0
    assert not old.exists()
    assert_same_result(run, finished)


# ---- what is refused


PLACES = ["model", "augment", "data", "datamodule", "callbacks.timing", "callbacks.x_target_", "logger.tensorboard"]
PLACES += ["optim", "optim.schedule", "trainer", "trainer.profiler", "trainer.plugins.deep.er", "normalise.mean"]


@pytest.mark.parametrize("option", PLACES)
def test_a_config_that_names_code_is_refused(finished: Path, option: str, tmp_path: Path) -> None:
    """Wherever in the configuration of a stranger it stands, it does not run."""
    run = copy_of(finished, tmp_path / "run")
    (run / "x.pickle").write_bytes(f"cos\nmkdir\n(V{tmp_path / 'trap'}\ntR.".encode())
    config = OmegaConf.load(run / "config.yaml")
    node = {"_target_": "pandas.read_pickle", "filepath_or_buffer": str(run / "x.pickle")}
    OmegaConf.update(config, option, node, merge=False, force_add=True)
    OmegaConf.save(config, run / "config.yaml")
    result = train(f"resume={run}")
    assert result.code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert "[untrusted-target]" in result.stderr or "[bad-run-config]" in result.stderr
    assert not (tmp_path / "trap").exists()


def test_a_run_that_another_process_works_on_is_refused(finished: Path, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path / "run")
    with (run / "config.yaml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(train(f"resume={run}"), "[run-in-use]")
    assert train(f"resume={run}").code == 0


@pytest.mark.parametrize("other", ["trainer.max_epochs=20", "seed=1", "model=cnn_mean", "run_dir=elsewhere"])
def test_other_overrides_are_refused(
    finished: Path, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(train(f"resume={finished}", other), "[resume-overrides]", other.partition("=")[0])
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_refused_and_not_made(tmp_path: Path) -> None:
    refused(train(f"resume={tmp_path / 'nowhere'}"), "[nothing-to-resume]")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(train(f"resume={tmp_path}"), "[nothing-to-resume]")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("damage", [truncated, altered, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = copy_of(finished, tmp_path / "run")
    damage(run / "checkpoints" / "last.ckpt")
    with pytest.warns(UserWarning, match=r"last.ckpt: .* Continuing from the epoch before, in .*previous.ckpt"):
        result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    assert_same_result(run, finished)
    assert_same_curves(run, finished)


def test_two_damaged_checkpoints_are_refused(finished: Path, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path / "run")
    for name in ("last", "previous"):
        truncated(run / "checkpoints" / f"{name}.ckpt")
    refused(train(f"resume={run}"), "[bad-checkpoint]", "previous.ckpt")
    assert json.loads((run / "metrics.json").read_text()) == metrics_of(finished)  # nothing is lost


@pytest.mark.parametrize(
    "old, new",
    [("lr: 0.001", "lr: 0.01"), ("num_frames: 4", "num_frames: 2"), ("seed: 0", "seed: 1"), ("flip: 0.0", "flip: 0.5")],
)
def test_an_edited_config_is_refused(finished: Path, tmp_path: Path, old: str, new: str) -> None:
    """The optimiser would keep its old learning rate, and the best epoch could be of other frames than the last."""
    run = copy_of(finished, tmp_path / "run")
    config = run / "config.yaml"
    assert f" {old}\n" in f" {config.read_text()}"
    config.write_text(config.read_text().replace(old, new))
    refused(train(f"resume={run}"), "[changed-config]", new.replace(": ", "="))


@pytest.mark.parametrize("old, new", [("mean: null", "mean: [0.5, 0.5, 0.5]"), ("    - 4\n    - 8\n", "    - 4\n")])
def test_a_config_with_a_list_more_or_less_is_refused(finished: Path, tmp_path: Path, old: str, new: str) -> None:
    run = copy_of(finished, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    assert text.count(old) == 1
    (run / "config.yaml").write_text(text.replace(old, new))
    refused(train(f"resume={run}"), "[changed-config]", "nothing")


def test_what_changes_no_result_may_be_edited() -> None:
    here, cluster = {"name": "local"}, {"name": "ray", "address": "auto", "networks": None}
    check_unchanged(OmegaConf.create({"data": {"engine": cluster}}), {"data": {"engine": here}})


def test_a_run_that_has_lost_its_manifest_is_refused(finished: Path, tmp_path: Path) -> None:
    """Its splits might be drawn otherwise, with videos that it was trained on in val."""
    run = copy_of(finished, tmp_path / "run")
    (run / "manifest.csv").unlink()
    refused(train(f"resume={run}"), "[bad-manifest]")
    assert not (run / "manifest.csv").exists()


def test_other_classes_are_refused(finished: Path, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path / "run")
    change_manifest(run, lambda rows: rows.assign(label=rows["label"].replace("safe", "unsafe")))
    refused(train(f"resume={run}"), "[other-classes]")
