"""What all processes of a run must have in common, once they have found each other."""

import platform
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.package_versions import package_versions
from vidcls.errors import UserError
from vidcls.files import hash_file
from vidcls.training.checkpoint import Checkpoint
from vidcls.training.launch import all_joined, end_with_others
from vidcls.training.run_config import MOVABLE
from vidcls.training.run_folder import manifest_path
from vidcls.training.target_check import leaves

OWN = {"debug", "print_config", "paths", "resume", "trust", *MOVABLE}  # what processes may have for themselves


class SameRun(L.Callback):
    """Refuses to train where processes of a run differ: each would take other steps, and the weights drift apart.

    And has SIGTERM end each process by itself. Lightning's handler would begin a collective, in which the other
    processes do not take part.

    Raises:
        UserError: options, code, versions, manifest or checkpoint differ, or a process does not see the cache.
    """

    def __init__(self, cfg: DictConfig, datamodule: VideoDataModule, last: Checkpoint | None) -> None:
        self.cfg, self.datamodule, self.last = cfg, datamodule, last

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1 and stage == "fit":
            every: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(every, (platform.node(), self._facts()))
            all_joined()
            check_same(every)

    def _facts(self) -> dict[str, str]:
        plain: Any = OmegaConf.to_container(self.cfg, resolve=True)
        facts = {key: str(value) for key, value in leaves(plain) if not OWN & set(key.split("."))}
        facts |= {f"version of {name}": version for name, version in package_versions().items()}
        facts["version of lightning"] = L.__version__
        facts["manifest.csv"] = hash_file(manifest_path(Path(self.cfg.run_dir)))[:12]
        facts["step of last.ckpt"] = str(self.last and self.last.step)
        store, first = self.datamodule.store, self.datamodule.rows("train")["sha256"][0]
        facts[f"stored frames in {store.folder}"] = "there" if store.find(first) else "none"
        return facts

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        end_with_others()
        # Before each step Lightning would have the first process tell the others of a SIGTERM, and a GPU be waited for.
        vars(trainer.fit_loop.epoch_loop)["_broadcast_sigterm_tensor"] = lambda: None

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        end_with_others()


def check_same(every: list[tuple[str, dict[str, str]]]) -> None:
    """Raises `UserError` at the first difference between the facts of process 0 and of another one, each of a machine.

    Example:
        >>> check_same([("a", {"seed": "0"}), ("b", {"seed": "0"})])
    """
    (machine, facts), *others = every
    for rank, (other_machine, other) in enumerate(others, 1):
        for key in facts | other:
            if (here := facts.get(key, "nothing")) != (there := other.get(key, "nothing")):
                raise UserError(
                    f"all processes to have the same {key}",
                    f"{here} in process 0 on {machine} and {there} in process {rank} on {other_machine}",
                    "Give all the same command and installation, and run_dir and cache_dir that they share.",
                    "different-processes",
                )
