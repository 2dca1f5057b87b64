"""The callbacks: what they measure, and that it survives an interruption."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.modules import build, clips, loader, trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from vidcls.data.dataset import VideoBatch
from vidcls.memory import keep_freed_memory
from vidcls.training.callbacks import History, ProgressBar, StayStopped, Timing, peak_memory, reset_peak_memory

CURVES = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]
MEGABYTE = 1_000_000


class Scripted(L.LightningModule):
    """Logs one made-up figure per epoch under the names of the real module; its steps take ``step_seconds``."""

    def __init__(self, val_losses: list[float], step_seconds: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.val_losses, self.step_seconds = val_losses, step_seconds
        self.epochs_trained = 0

    def training_step(self, clip: VideoBatch, _: int) -> Tensor:
        time.sleep(self.step_seconds)
        self.log("train/loss", float(self.current_epoch), on_step=True, on_epoch=True, batch_size=len(clip.label))
        self.log("train/accuracy", 0.5, on_step=False, on_epoch=True, batch_size=len(clip.label))
        return self.layer(torch.ones(1, 1)).sum()

    def on_train_epoch_end(self) -> None:
        self.epochs_trained += 1

    def validation_step(self, clip: VideoBatch, _: int) -> None:
        self.log("val/loss", self.val_losses[self.current_epoch], batch_size=len(clip.label))
        self.log("val/accuracy", 0.25, batch_size=len(clip.label))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SlowVideos(torch.utils.data.Dataset[VideoBatch]):
    """Six videos that take ``seconds`` and, for a moment, ``memory_bytes`` each to read."""

    def __init__(self, seconds: float = 0.0, memory_bytes: int = 0) -> None:
        self.seconds, self.memory_bytes = seconds, memory_bytes

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> VideoBatch:
        time.sleep(self.seconds)
        if self.memory_bytes:
            block = mmap.mmap(-1, self.memory_bytes, mmap.MAP_PRIVATE)  # which is not kept when it is freed
            np.frombuffer(block, np.uint8)[::4096] = 1
        return VideoBatch(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.tensor(0), torch.tensor(row))


def fit(
    folder: Path,
    module: Scripted,
    callbacks: list[L.Callback],
    epochs: int,
    videos: SlowVideos | None = None,
    resume: Path | None = None,
    logger: TensorBoardLogger | bool = False,
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=epochs,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    loader = DataLoader(videos or SlowVideos(), batch_size=4)
    trainer.fit(module, loader, DataLoader(SlowVideos(), batch_size=4), ckpt_path=resume, weights_only=True)
    return trainer


def last(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, filename="last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
    )


# ---- timing


def test_timing_knows_work_from_waiting(tmp_path: Path) -> None:
    timing = Timing()
    fit(tmp_path, Scripted([1.0] * 3, step_seconds=0.02), [timing], epochs=3, videos=SlowVideos(seconds=0.01))
    assert timing.clips == [6, 6, 6]
    assert len(timing.epoch_seconds) == len(timing.wait_seconds) == 3
    for epoch, wait in zip(timing.epoch_seconds, timing.wait_seconds, strict=True):
        assert 0.06 <= wait <= epoch - 0.04  # six readings of 10 ms, two steps of 20 ms
    assert timing.fit_seconds >= sum(timing.epoch_seconds)
    summary = timing.summary()
    assert summary["clips_per_second"] == pytest.approx(6 / summary["epoch_seconds"])
    assert 0 < summary["data_wait_fraction"] < 1


def timed(epochs: list[float], waits: list[float], clips: list[int]) -> dict[str, Any]:
    timing = Timing()
    state = {"epoch_seconds": epochs, "wait_seconds": waits, "clips": clips, "fit_seconds": 99.0}
    timing.load_state_dict(state)
    assert timing.state_dict() == state | {"peak_memory_bytes": None}
    return timing.summary()


def test_the_first_epoch_does_not_count() -> None:
    assert timed([100.0, 2.0, 8.0, 4.0], [90.0, 1.0, 2.0, 0.5], [40, 40, 40, 40]) == {
        "fit_seconds": 99.0,
        "epoch_seconds": 4.0,
        "clips_per_second": 10.0,
        "data_wait_fraction": 0.25,
        "peak_memory_bytes": None,
    }


def test_unless_it_is_alone() -> None:
    summary = timed([5.0], [1.0], [10])
    assert (summary["epoch_seconds"], summary["clips_per_second"], summary["data_wait_fraction"]) == (5.0, 2.0, 0.2)


@pytest.mark.skipif(not reset_peak_memory(torch.device("cpu")), reason="this system does not report its peak memory")
def test_peak_memory_is_that_of_the_fit(tmp_path: Path) -> None:
    keep_freed_memory()  # as every command does
    timings = [Timing() for _ in range(2)]
    for timing, size in zip(timings, (300 * MEGABYTE, 0), strict=True):
        fit(tmp_path, Scripted([1.0]), [timing], epochs=1, videos=SlowVideos(memory_bytes=size))
        torch.ones(300 * MEGABYTE, dtype=torch.uint8)  # freed and kept
    high, low = (timing.summary()["peak_memory_bytes"] for timing in timings)
    assert isinstance(high, int) and isinstance(low, int)
    assert 250 * MEGABYTE < high - low < 350 * MEGABYTE  # although it came first, in the same process


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_peak_memory_of_a_gpu() -> None:
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    assert torch.ones(300 * MEGABYTE, dtype=torch.uint8, device=device).all()
    assert peak_memory(device) >= before + 300 * MEGABYTE
    assert reset_peak_memory(device) and peak_memory(device) < before + 300 * MEGABYTE


# ---- history


def test_history_keeps_every_curve(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    fit(tmp_path, Scripted([3.0, 1.0, 2.0]), [history], epochs=3)
    assert history.curves == {
        "train/loss": [(1, 0.0), (2, 1.0), (3, 2.0)],
        "train/accuracy": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "val/loss": [(1, 3.0), (2, 1.0), (3, 2.0)],
        "val/accuracy": [(1, 0.25), (2, 0.25), (3, 0.25)],
    }
    table = history.table()
    assert list(table.columns) == CURVES and list(table.index) == [1, 2, 3]
    assert table["val/loss"].tolist() == [3.0, 1.0, 2.0]


def test_an_unfinished_run_has_its_history(tmp_path: Path) -> None:
    class Crash(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise KeyError("in the third epoch")

    with pytest.raises(KeyError):
        fit(tmp_path, Scripted([3.0, 1.0, 2.0]), [History(tmp_path / "history.csv"), Crash()], epochs=3)
    assert (tmp_path / "history.csv").read_text().splitlines() == [
        f"epoch,{','.join(CURVES)}",
        "1,0.0,0.5,3.0,0.25",
        "2,1.0,0.5,1.0,0.25",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


# ---- through an interruption


@pytest.mark.parametrize("order", [["last", "history", "timing"], ["history", "timing", "last"]])
def test_states_survive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[str]) -> None:
    losses = [4.0, 3.0, 2.0, 5.0]
    memory = iter([0, 30, 20, 0, 10, 10])  # what setup and each epoch read; what this process really holds varies
    monkeypatch.setattr("vidcls.training.callbacks.reset_peak_memory", lambda device: next(memory) == 0)
    monkeypatch.setattr("vidcls.training.callbacks.peak_memory", lambda device: next(memory))
    first: dict[str, Any] = {"last": last(tmp_path), "history": History(tmp_path / "history.csv"), "timing": Timing()}
    fit(tmp_path, Scripted(losses), [first[name] for name in order], epochs=2)
    again: dict[str, Any] = {"last": last(tmp_path), "history": History(tmp_path / "history.csv"), "timing": Timing()}
    module = Scripted(losses)
    fit(tmp_path, module, [again[name] for name in order], epochs=4, resume=tmp_path / "last.ckpt")
    assert module.epochs_trained == 2
    assert again["history"].curves["val/loss"] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 5.0)]
    assert [epoch for epoch, _ in again["history"].curves["train/loss"]] == [1, 2, 3, 4]
    assert again["timing"].clips == [6] * 4
    assert again["timing"].epoch_seconds[:2] == first["timing"].epoch_seconds
    assert again["timing"].fit_seconds > first["timing"].fit_seconds
    assert again["timing"].peak_memory_bytes == first["timing"].peak_memory_bytes == 30  # the first part needed more
    fit(tmp_path, Scripted(losses), [History(tmp_path / "at_once.csv")], epochs=4)
    assert (tmp_path / "history.csv").read_bytes() == (tmp_path / "at_once.csv").read_bytes()


def test_a_resumed_run_is_laid_out_once(tmp_path: Path) -> None:
    def fit_to(epochs: int, resume: Path | None) -> None:
        logger = TensorBoardLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
        callbacks = [last(tmp_path), History(tmp_path / "history.csv")]
        fit(tmp_path, Scripted([4.0, 3.0, 2.0, 5.0]), callbacks, epochs, resume=resume, logger=logger)

    fit_to(2, None)
    fit_to(4, tmp_path / "last.ckpt")
    log = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (layout,) = log.Tensors("custom_scalars__config__")
    for tag in (b"^train/loss$", b"^val/loss$", b"^train/accuracy$", b"^val/accuracy$"):
        assert tag in layout.tensor_proto.string_val[0]


@pytest.mark.parametrize(("stay", "trained_on"), [(True, 0), (False, 1)])
def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path, stay: bool, trained_on: int) -> None:
    def callbacks() -> list[L.Callback]:
        stopping = EarlyStopping("val/loss", patience=2)
        return [stopping, *([StayStopped()] if stay else []), last(tmp_path)]

    losses = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    first = fit(tmp_path, Scripted(losses), callbacks(), epochs=6)
    assert first.current_epoch == 3  # epochs two and three were no better than the first
    module = Scripted(losses)
    fit(tmp_path, module, callbacks(), epochs=6, resume=tmp_path / "last.ckpt")
    assert module.epochs_trained == trained_on  # without it, Lightning trains another epoch before it looks


def test_without_patience_a_run_ends_with_its_first_epoch_that_is_no_better(tmp_path: Path) -> None:
    module = Scripted([1.0, 0.5, 0.7, 0.1])
    fit(tmp_path, module, [EarlyStopping("val/loss", patience=0), StayStopped()], epochs=4)
    assert module.epochs_trained == 3


def test_a_run_that_had_patience_left_goes_on(tmp_path: Path) -> None:
    def callbacks() -> list[L.Callback]:
        return [EarlyStopping("val/loss", patience=2), StayStopped(), last(tmp_path)]

    losses = [1.0, 2.0, 0.5, 0.4]
    fit(tmp_path, Scripted(losses), callbacks(), epochs=2)
    module = Scripted(losses)
    fit(tmp_path, module, callbacks(), epochs=4, resume=tmp_path / "last.ckpt")
    assert module.epochs_trained == 2


class ReadValues(TorchDispatchMode):
    """Counts how often the value of a tensor is read, for which a GPU has to finish all that it was given."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_a_step_reads_no_value_of_a_tensor(tmp_path: Path) -> None:
    """Only a step that is logged, and the progress bar twice a second."""

    def reads(steps: int) -> int:
        bar = ProgressBar(leave=False)
        bar._due = float("inf")
        module = build(optim={"_target_": "torch.optim.SGD", "lr": 0.1})
        options = {"enable_progress_bar": True, "logger": TensorBoardLogger(tmp_path), "log_every_n_steps": 8}
        with ReadValues() as values:
            trainer(tmp_path, bar, **options).fit(module, loader(clips(4 * steps)), loader(clips(4)))
        return values.count

    assert 0 < reads(9) == reads(12)


def test_the_progress_bar_counts_epochs_from_one_as_the_results_do(tmp_path: Path) -> None:
    bar = ProgressBar(leave=False)
    bar._trainer = trainer(tmp_path, max_epochs=10)
    assert bar._get_train_description(9).rstrip() == "Epoch 10/10"
    bar._trainer = trainer(tmp_path, max_epochs=-1)
    assert bar._get_train_description(0).rstrip() == "Epoch 1"
