"""A callback that waits in one stage of a run, so that something can happen to a process there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L


class Pause(L.Callback):
    """Touches ``marker`` the first time that ``stage`` is reached, and gives what watches it two seconds."""

    def __init__(self, stage: str, marker: str) -> None:
        self.stage, self.marker, self.paused = stage, Path(marker), False

    def _reached(self, stage: str, trainer: L.Trainer) -> None:
        if stage == self.stage and not self.paused and trainer.current_epoch >= 1:
            self.paused = True
            if trainer.is_global_zero:
                self.marker.touch()
            time.sleep(2)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._reached("epoch", trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._reached("validation", trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._reached("checkpoint", trainer)

    def on_test_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._reached("test", trainer)
