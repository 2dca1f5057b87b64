"""Helpers that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from vidcls.data.dataset import VideoBatch
from vidcls.data.sampling import ClipSpec, StoreSpec
from vidcls.training.checkpoint import build_model, build_preprocess
from vidcls.training.module import VideoClassifier
from vidcls.training.spec import Normalisation, RunSpec
from vidcls.training.transforms import Augment

CLASSES = ["harmful", "safe", "adult"]  # not in alphabetical order
SPEC = RunSpec(
    classes=tuple(CLASSES),
    model={
        "_target_": "vidcls.models.classifiers.cnn_lstm",
        "_convert_": "all",
        "encoder": {"channels": [4, 8]},
        "lstm": {"hidden_size": 6},
        "dropout": 0.5,
    },
    clip=ClipSpec(num_frames=3, resolution=8),
    store=StoreSpec(stored_frames=3, stored_resolution=8, sampling="uniform"),
    normalisation=Normalisation(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 1.0)),
    batch_size=4,
)
OPTIM = {"_target_": "torch.optim.AdamW", "lr": 0.01, "eps": 1e-7, "weight_decay": 0.0, "schedule": "cosine"}


def build(spec: RunSpec = SPEC, augment: Augment | None = None, **changes: Any) -> VideoClassifier:
    torch.manual_seed(0)
    model, preprocess = build_model(spec), build_preprocess(spec, augment)
    return VideoClassifier(model, preprocess, spec, **({"optim": OPTIM} | changes))


def clips(count: int, seed: int = 0) -> list[VideoBatch]:
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(rng.integers(0, 256, (count, 3, 8, 8, 3), dtype=np.uint8))
    return [VideoBatch(frames[row], torch.tensor(row % 3), torch.tensor(row)) for row in range(count)]


def loader(videos: list[VideoBatch], batch_size: int = 4) -> DataLoader[VideoBatch]:
    return DataLoader(videos, batch_size=batch_size, generator=torch.Generator())  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: L.Callback, epochs: int = 1, **options: Any) -> L.Trainer:
    plain: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "max_epochs": epochs,
        "logger": False,
        "callbacks": list(callbacks),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**(plain | options))
