"""Ends unpromising jobs of a search early."""

import json
import os
from typing import Any

import lightning as L


class Pruning(L.Callback):
    """Ends a job of a search (``hydra/sweeper=optuna``) early if Optuna's pruner says so; else does nothing.

    As with early stopping, its metrics are those of its best epoch so far.
    """

    def __init__(self, pruner: Any, objective: str) -> None:
        self.pruner, self.objective = pruner, objective

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        prune = "OPTUNA_TRIAL" in os.environ and trainer.is_global_zero and self._report(trainer.current_epoch, module)
        if trainer.strategy.broadcast(prune):  # all devices stop together
            trainer.should_stop = True

    def _report(self, epoch: int, module: Any) -> bool:
        import optuna  # late: only searches need it

        address = json.loads(os.environ["OPTUNA_TRIAL"])
        study = optuna.load_study(study_name=address["study_name"], storage=address["storage"], pruner=self.pruner)
        trial = optuna.Trial(study, address["trial"])
        value = (module.metrics or {}).get(self.objective)  # without any before the first validation
        if value is not None:
            trial.report(value, epoch)
        return bool(trial.should_prune())
