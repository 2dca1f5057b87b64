"""Lightning callbacks: timing, learning curves, weight averaging, and the end of training."""

import time
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from vidcls.files import write_atomically
from vidcls.memory import release_freed_memory
from vidcls.plots.run_plots import confusion_figure
from vidcls.training.module import VideoClassifier

CURVES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
LAYOUT = {
    "Curves": {
        name.capitalize(): ["Multiline", [f"^{curve}$" for curve in CURVES if curve.endswith(f"/{name}")]]
        for name in ("loss", "accuracy")
    }
}
"""Of TensorBoard's tab Custom Scalars: training and validation in one chart. Its tags are regular expressions."""

Kind = TypeVar("Kind", bound=L.Callback)


def find_callback(trainer: L.Trainer, kind: type[Kind]) -> Kind:
    """The trainer's first callback of a class; it must have one."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, kind))


def tensorboard_loggers(trainer: L.Trainer) -> list[TensorBoardLogger]:
    """Those of the trainer's loggers that write to TensorBoard."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


class ProgressBar(RichProgressBar):
    """Lightning's, with epochs from 1 as in all results.

    Updated at most twice a second, as the metrics that it shows make the CPU wait for the GPU.
    """

    def __init__(self, leave: bool) -> None:
        super().__init__(leave=leave)
        self._due = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches or time.monotonic() >= self._due:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._due = time.monotonic() + 0.5

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        # If it were logged with prog_bar=True, Lightning would wait for the GPU after each step to have its value.
        loss = trainer.callback_metrics.get("train/loss_step")
        shown = {} if loss is None else {"train/loss_step": loss.item()}
        return shown | super().get_metrics(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        total = self.trainer.max_epochs
        description = f"Epoch {current_epoch + 1}" + (f"/{total}" if total and total > 0 else "")
        return description.ljust(len(self.validation_description))


class Timing(L.Callback):
    """Measures the duration of training epochs, the share of it spent waiting for data, and the peak memory.

    Waiting is the time between the end of one step and the start of the next; on a GPU by its own clock, as the CPU
    runs ahead of it.
    """

    def __init__(self) -> None:
        self.fit_seconds = 0.0  # with validation and checkpoints, up to the last finished epoch
        self.epoch_seconds: list[float] = []  # without validation; a resumed run keeps those from before
        self.wait_seconds: list[float] = []  # of each epoch, from the end of one step to the start of the next
        self.clips: list[int] = []  # trained on in each epoch
        # On a GPU allocated, on the CPU resident, without loader processes; None if the system does not report it.
        self.peak_memory_bytes: int | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._since = time.perf_counter()
            self._measures_memory = reset_peak_memory(trainer.strategy.root_device)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._on_gpu = trainer.strategy.root_device.type == "cuda"
        self._started = self._ended = time.perf_counter()
        self._marks, self._count = [self._now()], 0  # marks: the end of a step, the start of the next, and so on

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, _: int) -> None:
        self._marks.append(self._now())
        self._count += len(batch.label) * trainer.world_size

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        self._marks.append(self._now())
        if number + 1 == trainer.num_training_batches and self._on_gpu:
            torch.cuda.synchronize()
        self._ended = time.perf_counter()

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.epoch_seconds.append(self._ended - self._started)
        waits = zip(self._marks[::2], self._marks[1::2], strict=False)
        if self._on_gpu:
            torch.cuda.synchronize()
            self.wait_seconds.append(sum(end.elapsed_time(start) for end, start in waits) / 1000)
        else:
            self.wait_seconds.append(sum(start - end for end, start in waits))
        self.clips.append(self._count)
        now = time.perf_counter()
        self.fit_seconds += now - self._since
        self._since = now
        if self._measures_memory:
            self.peak_memory_bytes = max(self.peak_memory_bytes or 0, peak_memory(trainer.strategy.root_device))

    def summary(self) -> dict[str, Any]:
        """Medians over the epochs after the first, which includes start-up (of the first if there is no other)."""
        steady = slice(1, None) if len(self.epoch_seconds) > 1 else slice(None)
        seconds = median(self.epoch_seconds[steady])
        return {
            "fit_seconds": self.fit_seconds,
            "epoch_seconds": seconds,
            "clips_per_second": median(self.clips[steady]) / seconds,
            "data_wait_fraction": sum(self.wait_seconds[steady]) / sum(self.epoch_seconds[steady]),
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def state_dict(self) -> dict[str, Any]:
        names = ("epoch_seconds", "wait_seconds", "clips", "fit_seconds", "peak_memory_bytes")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.__dict__.update(state_dict)


def reset_peak_memory(device: torch.device) -> bool:
    """Starts a new measurement; returns False if the system does not support it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    release_freed_memory()  # of an earlier job of a sweep, which this process would otherwise be charged for
    try:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: sets VmHWM to what is resident now
        return peak_memory(device) > 0
    except (OSError, StopIteration):  # not Linux, or a sandbox without these files
        return False


def peak_memory(device: torch.device) -> int:
    """The peak since the reset: bytes allocated on a GPU, or resident bytes of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])  # the kernel counts in KiB


class History(L.Callback):
    """Writes each epoch's metrics to a .csv, for the learning curves, and shows each confusion matrix."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.curves: dict[str, list[tuple[int, float]]] = {}  # {"train/loss": [(epoch from 1, value), ...], ...}
        self.best_epoch: int | None = None  # from 1, the one that best.ckpt holds; known when training has ended
        self._validated = False  # in this epoch

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for logger in tensorboard_loggers(trainer) if trainer.global_step == 0 else []:  # a resumed run has it
            logger.experiment.add_custom_scalars(LAYOUT)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = dict(trainer.callback_metrics)
        if isinstance(module, VideoClassifier):
            metrics |= module.train_averages()
        kept = [name for name in CURVES if self._validated or name.startswith("train/")]  # not of an earlier epoch
        measured, self._validated = {name: float(metrics[name]) for name in kept if name in metrics}, False
        for name, value in measured.items():
            self.curves.setdefault(name, []).append((trainer.current_epoch + 1, value))
        for logger in trainer.loggers:
            # On disk before the checkpoint: a run killed right after the checkpoint would resume with a gap.
            of_training = {name: value for name, value in measured.items() if name.startswith("train/")}
            logger.log_metrics(of_training, step=trainer.global_step - 1)
            logger.save()
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_atomically(self.path, self.table().to_csv(index_label="epoch").encode())

    def table(self) -> pd.DataFrame:
        """One row per epoch, one column per curve."""
        return pd.DataFrame({name: dict(points) for name, points in self.curves.items()})

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._validated = True
        loggers = tensorboard_loggers(trainer)
        if loggers and isinstance(module, VideoClassifier) and module.metrics is not None:
            title = f"Validation, epoch {trainer.current_epoch + 1}"
            figure = confusion_figure(module.metrics["confusion"], list(module.spec.classes), title)
            for logger in loggers:
                logger.experiment.add_figure("val/confusion", figure, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"curves": self.curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves = state_dict["curves"]


class StayStopped(L.Callback):
    """Ends training at once where a resumed run had already stopped early."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        callbacks = [c for c in trainer.early_stopping_callbacks if isinstance(c, EarlyStopping)]
        if any(c.wait_count >= max(c.patience, 1) for c in callbacks):  # patience 0 stops as 1 does
            trainer.should_stop = True


class EMA(WeightAveraging):
    """Exponential moving average of the weights, which is validated, saved and tested in their place.

    After n steps the decay is min(decay, n / (9 + n)), a warm-up that Lightning's ``EMAWeightAveraging`` does not have.
    The running statistics of batch norms are averaged too.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(multi_avg_fn=self._update)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # the module is moved there after this
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:  # its count is read at each step, for which the CPU would wait for the GPU
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    @torch.no_grad()
    def _update(self, averages: list[Tensor], currents: list[Tensor], _: Tensor) -> None:
        if averages[0].is_floating_point():
            done = self._latest_update_step
            kept = min(self.decay, done / (9 + done))
            # Unlike a weighted sum, exact for frozen weights.
            torch._foreach_lerp_(averages, currents, 1 - kept)
        else:
            torch._foreach_copy_(averages, currents)
