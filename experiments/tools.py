"""What the experiments share: composing a configuration as train.py does, and stores of made-up clips."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

import vidcls.entry  # noqa: F401 (registers what the configuration refers to)
from vidcls.data.datamodule import VideoDataModule
from vidcls.data.decode import Reading
from vidcls.module import VideoModule

ROOT = Path(__file__).parent.parent


def compose_train(run_dir: Path, *overrides: str) -> DictConfig:
    """The configuration of ``python train.py ...`` with its run folder in ``run_dir``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"run_dir={run_dir}", *overrides])
    with open_dict(cfg):
        cfg.run_dir = str(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    return cfg


def fill_with_noise(datamodule: VideoDataModule, videos: int) -> None:
    """Puts ``videos`` made-up clips of noise into the store and makes them the training split (and 8 of them val)."""
    generator = np.random.default_rng(0)
    store = datamodule.store
    shape = (store.num_frames, store.resolution, store.resolution, 3)
    reading = Reading("ok", "", "noise", seconds=1.0, coverage=1.0)
    rows = []
    for number in range(videos):
        sha256 = f"{number:064x}"
        if not store.path(sha256).exists():
            store.write(sha256, generator.integers(256, size=shape, dtype=np.uint8), reading)
        rows.append([f"{number}.mp4", str(number % 2), "train", "", sha256, "ok"])
    held_out = [[path, label, "val", *rest] for path, label, _, *rest in rows[:8]]
    columns = ["path", "label", "split", "creator", "sha256", "status"]
    datamodule.adopt(pd.DataFrame(rows + held_out, columns=columns))


def training_tensors(datamodule: VideoDataModule, module: VideoModule) -> tuple[torch.Tensor, torch.Tensor]:
    """The training split, preprocessed, in memory: float [N, T, 3, R, R] and labels [N]."""
    clips = [clip for batch in datamodule.loader("train", train=False) for clip in module.preprocess(batch.frames)]
    labels = torch.tensor(datamodule.dataset("train").labels)
    return torch.stack(clips), labels


def real_clips() -> Path | None:
    """The folder of real clips that the environment variable VIDCLS_REAL_DATA names, if any."""
    folder = Path(os.environ.get("VIDCLS_REAL_DATA", "missing"), "fights")
    return folder if folder.is_dir() else None


def machine() -> str:
    """The machine, in words."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {platform.machine()}, {device}, torch {torch.__version__}"
