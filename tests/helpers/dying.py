"""A process that dies in the middle of training."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning as L


class DieInSecondEpoch(L.Callback):
    """Kills the second process of a run, as the system does when memory is short, if the environment says so."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if (
            trainer.current_epoch == 1
            and batch_idx == 1
            and trainer.global_rank == 1
            and "VIDCLS_TEST_DIES" in os.environ
        ):
            os.kill(os.getpid(), signal.SIGKILL)


class KillLoaders(L.Callback):
    """Kills the loader processes of a run, as the system does when memory is short."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        for worker in trainer.train_dataloader._iterator._workers:  # type: ignore[union-attr]
            os.kill(worker.pid, signal.SIGKILL)
