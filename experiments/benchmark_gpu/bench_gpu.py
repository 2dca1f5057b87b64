"""Clips per second of train.py on a GPU beside a loop that only computes, on noise and, where they are, real clips.

The compute-only loop trains the same network in the same precision on batches that already lie on the GPU. Batch 4 is
the notebook's, where starting kernels takes longer than running them; 64 is what a GPU user would choose.
Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.tools import compose_train, machine, noise_videos, real_clips
from vidcls.training import loop as run
from vidcls.training.callbacks import Timing, find_callback
from vidcls.training.checkpoint import build_model
from vidcls.training.module import VideoClassifier
from vidcls.training.optim import build_optimizer


def compute_only(module: VideoClassifier, batch_size: int, seconds: float) -> float:
    """Clips per second of forward, backward and optimiser steps on one batch that stays on the device."""
    device = torch.device("cuda")
    model = build_model(module.spec).to(device).train()
    optimizer = build_optimizer(module.optim, model.stages(), 1, 1)["optimizer"]
    side, frames = module.spec.clip.resolution, module.spec.clip.num_frames
    clips = torch.rand(batch_size, frames, side, side, 3, device=device).movedim(-1, 2)
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)

    def twenty_steps() -> None:
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(model(clips), labels)
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()

    twenty_steps()  # the first ones choose kernels
    rounds, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        twenty_steps()
        rounds += 1
    return 20 * rounds * batch_size / (time.perf_counter() - started)


def bench(folder: Path, source: Path | None, videos: int, batch_size: int, compile_network: bool) -> dict[str, object]:
    """One training run of three epochs, and the compute-only loop after it."""
    name = f"{'noise' if source is None else 'clips'}_{batch_size}_{compile_network}"
    overrides = ["data=folder", f"data.source={source}", f"data.batch_size={batch_size}", "trainer=gpu"]
    overrides += ["trainer.max_epochs=3", f"compile={compile_network}", f"cache_dir={folder / 'cache'}"]
    cfg = compose_train(folder / name, *overrides)
    synthetic = source is None
    datamodule = noise_videos(instantiate(cfg.data), videos) if synthetic else run.build_datamodule(cfg)
    module = run.build_module(cfg, datamodule)
    trainer, _ = run.fit(cfg, module, datamodule)
    timing = find_callback(trainer, Timing).summary()
    bound = compute_only(module, batch_size, seconds=5.0)
    return {
        "data": "noise" if source is None else "real clips",
        "batch_size": batch_size,
        "compile": compile_network,
        "train_clips_per_second": round(timing["clips_per_second"], 1),
        "compute_only_clips_per_second": round(bound, 1),
        "ratio": round(timing["clips_per_second"] / bound, 3),
        "data_wait_fraction": round(timing["data_wait_fraction"], 3),
    }


def main() -> None:
    """Runs every combination and writes results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=5000, help="synthetic clips in the synthetic store")
    videos = parser.parse_args().videos
    if not torch.cuda.is_available():
        sys.exit("expected a CUDA GPU; got none that torch can see. Run make bench-gpu on a machine that has one.")
    clips = real_clips()
    with tempfile.TemporaryDirectory() as name:
        rows = [
            bench(Path(name), source, videos, batch_size, compile_network)
            for source in ([None, clips] if clips else [None])
            for batch_size, compile_network in ((4, False), (64, False), (64, True))
        ]
    results = {"machine": machine(), "videos": videos, "runs": rows}
    Path(__file__).with_name("results.json").write_text(json.dumps(results, indent=2) + "\n")
    for row in rows:
        print(row)
    print("goal: train_clips_per_second >= 0.9 of compute_only_clips_per_second")


if __name__ == "__main__":
    main()
