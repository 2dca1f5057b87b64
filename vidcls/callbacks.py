"""What happens around the training loop: how long it took, how it went, and what the dashboard shows."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, TypeVar

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from vidcls.figures import confusion_figure
from vidcls.module import VideoModule

Kind = TypeVar("Kind", bound=L.Callback)


def find_callback(trainer: L.Trainer, kind: type[Kind]) -> Kind:
    """The trainer's first callback of a kind."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, kind))


class Timing(L.Callback):
    """How long training epochs take, and how much of that is waiting for data. Validation does not count.

    Attributes:
        epoch_seconds: one entry per epoch; a resumed run keeps those from before.
        wait_seconds: likewise, spent between the end of one step and the start of the next.
        clips: trained on, per epoch.
        fit_seconds: in the trainer, validation and checkpoints included, up to the last finished epoch.
    """

    def __init__(self) -> None:
        self.fit_seconds = 0.0
        self.epoch_seconds: list[float] = []
        self.wait_seconds: list[float] = []
        self.clips: list[int] = []

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts the clock of the whole."""
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts an epoch's clock."""
        self._started = self._idle_since = self._ended = time.perf_counter()
        self._wait, self._count = 0.0, 0

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, _: int) -> None:
        """A batch has arrived."""
        self._wait += time.perf_counter() - self._idle_since
        self._count += len(batch.label) * trainer.world_size

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        """A step is done."""
        self._idle_since = self._ended = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Adds the epoch, up to its last step."""
        self.epoch_seconds.append(self._ended - self._started)
        self.wait_seconds.append(self._wait)
        self.clips.append(self._count)
        now = time.perf_counter()
        self.fit_seconds += now - self._since
        self._since = now

    def summary(self) -> dict[str, float]:
        """Medians over the epochs after the first, which pays for start-up (over the first where it is alone)."""
        steady = slice(1, None) if len(self.epoch_seconds) > 1 else slice(None)
        seconds = median(self.epoch_seconds[steady])
        return {
            "fit_seconds": self.fit_seconds,
            "epoch_seconds": seconds,
            "clips_per_second": median(self.clips[steady]) / seconds,
            "data_wait_fraction": sum(self.wait_seconds[steady]) / sum(self.epoch_seconds[steady]),
        }

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {name: getattr(self, name) for name in ("epoch_seconds", "wait_seconds", "clips", "fit_seconds")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.__dict__.update(state_dict)


class History(L.Callback):
    """Keeps each epoch's figures for the learning curves, and shows the confusion matrix after each epoch.

    Attributes:
        curves: ``{"train/loss": [(epoch, value), ...], ...}``, epochs counted from 1.
    """

    def __init__(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keeps what the epoch has measured, and sends its training figures to the logger."""
        for curve in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
            self.curves.setdefault(curve, []).append(
                (trainer.current_epoch + 1, float(trainer.callback_metrics[curve]))
            )
        if isinstance(trainer.logger, TensorBoardLogger):
            # On disk before the checkpoint: a run killed right after it would otherwise resume with a hole in them.
            epoch = {name: self.curves[name][-1][1] for name in ("train/loss", "train/accuracy")}
            trainer.logger.log_metrics(epoch, step=trainer.global_step - 1)
            trainer.logger.save()

    def table(self) -> pd.DataFrame:
        """One row per epoch, one column per curve."""
        return pd.DataFrame({name: dict(points) for name, points in self.curves.items()})

    @property
    def best_epoch(self) -> int:
        """The epoch with the lowest validation loss, the one that best.ckpt holds."""
        return min(self.curves["val/loss"], key=lambda point: point[1])[0]

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draws the confusion matrix."""
        if isinstance(trainer.logger, TensorBoardLogger) and isinstance(module, VideoModule) and module.predictions:
            classes = module.settings["classes"]
            confusion = module.predictions.summary(classes)["confusion"]
            figure = confusion_figure(confusion, classes, f"Validation, epoch {trainer.current_epoch + 1}")
            trainer.logger.experiment.add_figure("val/confusion", figure, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"curves": self.curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.curves = state_dict["curves"]


class StayStopped(L.Callback):
    """A run that had stopped early before it was interrupted does not train on when it is resumed."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Looks at the restored early stopping."""
        if any(isinstance(c, EarlyStopping) and c.wait_count >= c.patience for c in trainer.early_stopping_callbacks):
            trainer.should_stop = True
