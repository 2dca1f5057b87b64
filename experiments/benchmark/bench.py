"""Training against a plain loop, ingest against a bare loop, and memory against the number of videos, on a CPU.

Speeds are ratios of things timed in turns in one process, as machines are noisy. Writes results.json beside this file.
Uses the real clips where VIDCLS_REAL_DATA names them, else the demo videos.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import lightning as L
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.tools import ROOT, compose_train, machine, real_clips, training_tensors
from vidcls.data.datamodule import VideoDataModule
from vidcls.training import loop as run
from vidcls.training.callbacks import Timing, find_callback
from vidcls.training.checkpoint import build_model
from vidcls.training.module import VideoClassifier
from vidcls.training.optim import build_optimizer

EPOCHS = 6
MEMORY_VIDEOS = (250, 4000)


class PlainLoop(L.Callback):
    """After each epoch, times one of the plain PyTorch loop: same network, same batch, tensors already in memory."""

    def __init__(self, module: VideoClassifier, datamodule: VideoDataModule) -> None:
        self.clips, self.labels = training_tensors(datamodule, module)
        self.batch_size = datamodule.options.batch_size
        self.model = build_model(module.spec)
        self.optimizer = build_optimizer(module.optim, self.model.stages(), 1, 1)["optimizer"]
        self.epoch_seconds: list[float] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """One plain epoch."""
        started = time.perf_counter()
        for rows in torch.randperm(len(self.labels)).split(self.batch_size):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.clips[rows]), self.labels[rows]).backward()
            self.optimizer.step()
        self.epoch_seconds.append(time.perf_counter() - started)


def bench_training(folder: Path, source: list[str]) -> dict[str, object]:
    """Steady-state epochs of train.py's path over epochs of the plain loop."""
    cfg = compose_train(folder / "run", *source, f"cache_dir={folder / 'cache'}", f"trainer.max_epochs={EPOCHS}")
    datamodule = run.build_datamodule(cfg)
    module = run.build_module(cfg, datamodule)
    plain = PlainLoop(module, datamodule)
    trainer, _ = run.fit(cfg, module, datamodule, extra_callbacks=[plain])
    timing = find_callback(trainer, Timing)
    pairs = list(zip(timing.epoch_seconds, plain.epoch_seconds, strict=True))[1:]  # the first pays for start-up
    return {
        "clips": len(plain.labels),
        "train_epoch_seconds": [round(ours, 3) for ours, _ in pairs],
        "plain_epoch_seconds": [round(theirs, 3) for _, theirs in pairs],
        "ratio": round(median(ours / theirs for ours, theirs in pairs), 3),
        "data_wait_fraction": round(timing.summary()["data_wait_fraction"], 4),
    }


def call(script: str, *arguments: object) -> str:
    """What a script beside this one prints last, run in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()[-1]


def bench_memory(folder: Path) -> dict[str, object]:
    """Peak memory of a training epoch over stores of very different sizes."""
    few, many = (int(call("peak_memory.py", folder / "memory", videos)) for videos in MEMORY_VIDEOS)
    peaks = dict(zip(map(str, MEMORY_VIDEOS), (few, many), strict=True))
    return {"peak_megabytes": peaks, "ratio": round(many / few, 3)}


def main() -> None:
    """Runs all three and writes results.json."""
    clips = real_clips()
    source = ["data=folder", f"data.source={clips}"] if clips else ["data=demo"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = bench_training(folder, source)
        ingesting = json.loads(call("ingest_rate.py", clips or ROOT / "data" / "demo"))
        memory = bench_memory(folder)
    results = {
        "machine": machine(),
        "videos": "real clips" if clips else "demo",
        "training": training,
        "ingest": ingesting,
        "memory": memory,
    }
    Path(__file__).with_name("results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    print(f"train.py / plain loop: {training['ratio']} (goal <= 1.05)")
    print(f"ingest / bare decord loop: {ingesting['ratio']} (goal >= 1.8)")
    print(f"peak memory, {MEMORY_VIDEOS[1]} over {MEMORY_VIDEOS[0]} videos: {memory['ratio']} (goal about 1)")


if __name__ == "__main__":
    main()
