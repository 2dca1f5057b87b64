"""Helpers that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from vidcls.data.dataset import Clip
from vidcls.training.loop import CHECKPOINT_FORMAT, build_network
from vidcls.training.module import VideoModule
from vidcls.training.optim import AdamW
from vidcls.training.transforms import Augment

CLASSES = ["harmful", "safe", "adult"]  # not in alphabetical order
SETTINGS: dict[str, Any] = {
    "format": CHECKPOINT_FORMAT,
    "classes": CLASSES,
    "model": {
        "_target_": "vidcls.models.classifiers.cnn_lstm",
        "_convert_": "all",
        "encoder": {"channels": [4, 8]},
        "lstm": {"hidden_size": 6},
        "dropout": 0.5,
    },
    "normalise": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 1.0]},
    "data": {
        "num_frames": 3,
        "resolution": 8,
        "batch_size": 4,
        "sampling": "uniform",
        "store_num_frames": 3,
        "store_resolution": 8,
        "clip_seconds": None,
        "num_clips": 1,
    },
}


def build(settings: dict[str, Any] = SETTINGS, **changes: Any) -> VideoModule:
    torch.manual_seed(0)
    model, preprocess = build_network(settings, Augment())
    optim = AdamW(lr=0.01, eps=1e-7, weight_decay=0.0, schedule="cosine")
    arguments = {"optim": optim, "seed": 0, "label_smoothing": 0.0, "class_weights": None, "settings": settings}
    return VideoModule(model, preprocess, **(arguments | changes))


def clips(count: int, seed: int = 0) -> list[Clip]:
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(rng.integers(0, 256, (count, 3, 8, 8, 3), dtype=np.uint8))
    return [Clip(frames[row], torch.tensor(row % 3), torch.tensor(row)) for row in range(count)]


def loader(videos: list[Clip], batch_size: int = 4) -> DataLoader[Clip]:
    return DataLoader(videos, batch_size=batch_size, generator=torch.Generator())  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: L.Callback, epochs: int = 1, **knobs: Any) -> L.Trainer:
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
    }
    return L.Trainer(**(plain | knobs))
