"""A trained run, from its folder alone: the best network, its settings, its videos. Runs no code of the folder's.

A run folder may come from somebody else. Its checkpoint is read with ``weights_only=True``, and of its config.yaml
only plain values are used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.ingest import read_manifest
from vidcls.data.sampling import select_frames
from vidcls.errors import UserError, check_choice
from vidcls.files import hash_file
from vidcls.training.loop import Settings, build_network, load_checkpoint, read_config
from vidcls.training.module import VideoModule, average_clips
from vidcls.training.optim import AdamW
from vidcls.training.transforms import Augment

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        folder: where it is.
        cfg: its configuration, with paths into the folder as it lies now.
        settings: of the checkpoint, see `vidcls.training.loop.Settings`.
        module: the network with the weights of best.ckpt, ready to judge.
        identity: the first 12 hex digits of the SHA-256 of best.ckpt.
        step: how many training steps these weights have seen.
        manifest: its videos.
    """

    folder: Path
    cfg: DictConfig
    settings: Settings
    module: VideoModule
    identity: str
    step: int
    manifest: pd.DataFrame

    @property
    def classes(self) -> list[str]:
        """The K names, in the order of the probabilities."""
        return list(self.settings["classes"])

    @property
    def policy_path(self) -> Path:
        """Where its policy is, or would be."""
        return self.folder / "policy.json"


def load_trained(folder: Path) -> Trained:
    """Reads the run in ``folder``.

    Raises:
        UserError: it is not the folder of a finished run.
    """
    folder = folder.resolve()
    best = folder / "checkpoints" / "best.ckpt"
    for path in (folder / "config.yaml", folder / "manifest.csv", best):
        if not path.is_file():
            raise UserError("the folder of a finished run in run=", f"{folder} without {path.name}", "Check run=.")
    checkpoint = load_checkpoint(best)
    settings = checkpoint["vidcls"]
    try:
        cfg = read_config(folder)
        manifest = read_manifest(folder / "manifest.csv")
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError("a run's config.yaml and manifest.csv", f"{folder}: {error}", "Check run=.") from error
    model, preprocess = build_network(settings, Augment())
    if cfg.compile:
        model.compile()  # as it was tested
    module = VideoModule(
        model,
        preprocess,
        optim=AdamW(lr=0.0, eps=1e-7, weight_decay=0.0, schedule="constant"),  # never steps
        seed=0,
        label_smoothing=0.0,
        class_weights=None,
        settings=settings,
    )
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    return Trained(folder, cfg, settings, module, hash_file(best)[:12], int(checkpoint["global_step"]), manifest)


def device_settings(trained: Trained, accelerator: str | None) -> dict[str, Any]:
    """``accelerator``, ``devices`` and ``precision`` as in training, for Lightning's Trainer and Fabric.

    Args:
        trained: the run.
        accelerator: instead of the run's own; None keeps that.

    Raises:
        UserError: it was trained on a GPU and there is none.
    """
    accelerator = check_choice("accelerator", accelerator or str(trained.cfg.trainer.accelerator), ACCELERATORS)
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("a CUDA GPU, on which this run was trained", "none that torch can see", "Give accelerator=cpu.")
    return {"accelerator": accelerator, "devices": 1, "precision": trained.cfg.trainer.precision}


def build_tester(trained: Trained, accelerator: str | None) -> L.Trainer:
    """A trainer that only tests, on one device and in the arithmetic of training."""
    return L.Trainer(
        **device_settings(trained, accelerator),
        deterministic=bool(trained.cfg.trainer.deterministic),
        benchmark=trained.cfg.trainer.get("benchmark"),
        logger=False,
        callbacks=[RichProgressBar(leave=False)],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def build_data(trained: Trained, source: str | None, cache_dir: str | None) -> VideoDataModule:
    """The run's datamodule, with its decode settings and classes, over its own videos or over those of ``source``.

    Raises:
        UserError: a setting of the run's config.yaml is out of range.
    """
    plain: Any = OmegaConf.to_container(trained.cfg.data, resolve=True)
    knobs = {name: value for name, value in plain.items() if not name.startswith("_")}
    decoding = dict(trained.settings["data"])
    knobs["store"] = {name: decoding.pop(f"store_{name}") for name in ("num_frames", "resolution")}
    knobs |= decoding | {"classes": trained.classes, "cache_dir": cache_dir or knobs["cache_dir"]}
    if source is not None:
        knobs |= {"source": source, "demo": None}
    return VideoDataModule(**knobs)


class Judge:
    """The network over new videos, whole or in windows, in the arithmetic of the run's own test.

    Args:
        trained: the run.
        accelerator: instead of the run's own; None keeps that.
    """

    def __init__(self, trained: Trained, accelerator: str | None) -> None:
        fabric = Fabric(**device_settings(trained, accelerator))
        if trained.cfg.trainer.deterministic:  # as Lightning's trainer does it
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        data = trained.settings["data"]
        self.batch_size = int(data["batch_size"])
        self._stored = int(data["store_num_frames"])
        self._indices = select_frames(data["store_num_frames"], data["num_frames"], data["sampling"])
        self._network = fabric.setup_module(trained.module)
        self._device = fabric.device

    @torch.inference_mode()
    def __call__(self, stacks: Sequence[UInt8[np.ndarray, "_ H W 3"]]) -> Float[np.ndarray, "B K"]:
        """Probabilities of stacks of frames, as `vidcls.data.decoding.frames.decode` gives them.

        A stack of F frames is a clip; those of the M clips in one of M F frames are averaged.
        """
        counts = [len(stack) // self._stored for stack in stacks]
        clips = [stack.reshape(-1, self._stored, *stack.shape[1:])[:, self._indices] for stack in stacks]
        batches = torch.from_numpy(np.concatenate(clips)).split(self.batch_size)
        logits = torch.cat([self._network(batch.to(self._device)).float() for batch in batches])
        return np.concatenate([average_clips(part[None]).cpu().numpy() for part in logits.split(counts)])
