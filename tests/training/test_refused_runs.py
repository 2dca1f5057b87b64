"""What train.py refuses, each in one clear line."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import TINY, TRAIN, Result, start_train, train
from helpers.runs import refused


def test_a_used_run_folder_is_refused(finished: Path, tiny: list[str]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    refused(train(*tiny, f"run_dir={finished}"), "[used-run-dir]", f"resume={finished}")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_process_of_its_own_ends_with_one_line(tmp_path: Path) -> None:
    process = start_train("data=folder", "data.source=nowhere", cwd=tmp_path)
    stdout, stderr = process.communicate(timeout=120)
    refused(Result(process.returncode, stdout, stderr), "[missing-source]")


def a_file(path: Path) -> None:
    path.write_text("notes")


def an_empty_folder(path: Path) -> None:
    path.mkdir()


def no_videos(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("notes")


def one_class(path: Path) -> None:
    for split in ("train", "val"):
        (path / split / "safe").mkdir(parents=True)
        (path / split / "safe" / "a_1.mp4").write_bytes(b"no video")


def no_readable_video(path: Path) -> None:
    for split in ("train", "val"):
        for label in ("safe", "harmful"):
            (path / split / label).mkdir(parents=True)
            (path / split / label / "a_1.mp4").write_bytes(b"no video")


@pytest.mark.parametrize(
    ("name", "make", "code"),
    [
        ("source", None, "missing-source"),
        ("source", an_empty_folder, "empty-source"),
        ("source", no_videos, "empty-source"),
        ("source", one_class, "one-class"),
        ("source.zip", a_file, "damaged-zip"),
        ("source.md", a_file, "source-type"),
        ("source.txt", a_file, "bad-csv"),
        ("source", no_readable_video, "empty-train-split"),
    ],
)
def test_sources_that_cannot_be_used(
    name: str, make: Callable[[Path], None] | None, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if make:
        make(tmp_path / name)
    refused(train(*TINY, f"data.source={name}", "run_dir=run"), f"[{code}]")


@pytest.mark.parametrize("override", ["+augment.fllip=0.5", "+callbacks.best.montor=x", "+trainer.max_epoch=3"])
def test_keywords_that_a_class_does_not_have(override: str, tiny: list[str], tmp_path: Path) -> None:
    refused(train(*tiny, override, f"run_dir={tmp_path / 'run'}"), "[instantiation]")


@pytest.mark.parametrize("override", ["optim.schedule=step", "augment.flip=2.0"])
def test_settings_are_refused_before_anything_is_decoded(override: str, tiny: list[str], tmp_path: Path) -> None:
    here = [f"cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    refused(train(*tiny, *here, override), f"[{override.partition('=')[0]}]")
    assert not (tmp_path / "cache").exists()


def test_a_source_must_be_given(tmp_path: Path) -> None:
    refused(train("data=folder", f"run_dir={tmp_path / 'run'}"), "[missing-option]", "data.source")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_must_be_there(tiny: list[str], tmp_path: Path) -> None:
    overrides = [text for text in tiny if not text.startswith("trainer.accelerator")]
    refused(train(*overrides, "trainer=gpu", "data.num_workers=0", f"run_dir={tmp_path / 'run'}"), "[no-gpu]")


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
@pytest.mark.parametrize("precision", ["16-mixed", "16"])
def test_a_cpu_does_not_compute_in_mixed_float16(
    accelerator: str, precision: str, tiny: list[str], tmp_path: Path
) -> None:
    """Lightning would compute in bf16 instead, of which config.yaml would say nothing."""
    if accelerator == "auto" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    device = [f"trainer.accelerator={accelerator}", f"trainer.precision={precision}"]
    refused(train(*tiny, *device, f"run_dir={tmp_path / 'run'}"), "[trainer.precision]", "bf16-mixed")


def test_too_little_address_space(tiny: list[str], tmp_path: Path) -> None:
    command = ["bash", "-c", 'ulimit -v 3000000; exec "$0" "$@"', sys.executable, str(TRAIN), *tiny]
    done = subprocess.run([*command, f"run_dir={tmp_path / 'run'}"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "ulimit -v unlimited. [address-space]" in done.stderr.splitlines()[-1]


def test_operations_that_cannot_be_repeated(tiny: list[str], tmp_path: Path) -> None:
    """As those of mvit_v2_s on a GPU."""
    own = [text for text in tiny if not text.startswith("model.")]
    own += ["model=custom", "model._target_=helpers.nets.Unrepeatable", "trainer.max_epochs=1"]
    refused(train(*own, f"run_dir={tmp_path / 'run'}"), "[not-deterministic]", "trainer.deterministic=warn")
    assert train(*own, "trainer.deterministic=warn", f"run_dir={tmp_path / 'warn'}").code == 0


@pytest.mark.parametrize(
    "other", ["+callbacks.best.save_top_k=3", "callbacks.best.filename=other", "callbacks.last.filename=other"]
)
def test_a_best_checkpoint_that_others_overwrite_is_refused(tiny: list[str], tmp_path: Path, other: str) -> None:
    refused(train(*tiny, other, f"run_dir={tmp_path / 'run'}"), "[callbacks.")


@pytest.mark.parametrize(
    "missing",
    [["callbacks.best.monitor=val/f1"], ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/f1"]],
)
def test_a_metric_that_there_is_not_ends_in_one_line(missing: list[str], tiny: list[str], tmp_path: Path) -> None:
    refused(train(*tiny, *missing, f"run_dir={tmp_path / 'run'}"), "val/f1", "[lightning]")


def test_too_little_memory(tiny: list[str], tmp_path: Path) -> None:
    own = [text for text in tiny if not text.startswith("model.")]
    hungry = train(*own, "model=custom", "model._target_=helpers.nets.Hungry", f"run_dir={tmp_path / 'hungry'}")
    refused(hungry, "[memory]", "data.batch_size")
    killed = "+callbacks.killed._target_=helpers.dying.KillLoaders"
    refused(train(*tiny, killed, "data.num_workers=1", f"run_dir={tmp_path / 'killed'}"), "[lost-loader]")


def test_curves_that_cannot_be_written_end_it_without_a_traceback(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard writes in a thread of its own, whose errors Python prints with a traceback."""

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("threading.excepthook", threading.__excepthook__)  # Python's own, not pytest's
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", write)
    result = train(*tiny, f"run_dir={tmp_path / 'run'}")
    refused(result, "[disk]", "No space left on device")
    assert "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_made_is_told_before_hydra_tries(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(train(*tiny, f"run_dir={tmp_path / 'file'}"), "[run_dir]", str(tmp_path))
    refused(train(*tiny, f"run_dir={tmp_path / 'file' / 'run'}"), "[run_dir]", str(tmp_path))
    refused(train("-m", *tiny, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'file' / 'sweep'}"), "[disk]", str(tmp_path))
