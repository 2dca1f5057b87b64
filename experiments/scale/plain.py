"""What one would write with Ray Data alone: ray.data.read_videos -> map_batches -> write_parquet, the same network.

    PYTHONPATH=. python experiments/scale/plain.py RUN VIDEOS OUTPUT

A block must hold one whole video, so that its frames can be chosen: hence a block per file. A file that has no video
ends all.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from experiments.tools import ROOT
from vidcls.prediction.loading import load_run
from vidcls.prediction.run import LoadedRun


class Network:
    """The network as an actor of map_batches."""

    def __init__(self, run: LoadedRun, threads: int) -> None:
        torch.set_num_threads(threads)
        self.predictor = run.make_predictor()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"path": batch["path"], "probabilities": self.predictor(list(batch["clip"]))}


def main(run_dir: str, videos: str, output: str) -> None:
    """Writes the probabilities of all videos in a folder."""
    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    run = load_run(Path(run_dir), ())
    spec = run.spec.store
    ray.init(log_to_driver=False)  # RAY_ADDRESS names a cluster

    def choose_frames(batch: dict[str, Any]) -> dict[str, Any]:
        size = (spec.stored_resolution, spec.stored_resolution)
        indices = np.linspace(0, len(batch["frame"]) - 1, spec.stored_frames).round().astype(int)
        frames = torch.from_numpy(batch["frame"][indices]).permute(0, 3, 1, 2).float()
        small = torch.nn.functional.interpolate(frames, size, mode="bilinear", antialias=True)
        return {"path": batch["path"][:1], "clip": small.round().byte().permute(0, 2, 3, 1).numpy()[None]}

    files = sorted(str(path) for path in Path(videos).iterdir())
    dataset = ray.data.read_videos(files, include_paths=True, override_num_blocks=len(files))
    dataset = dataset.map_batches(choose_frames, batch_size=None)
    arguments = (run, torch.get_num_threads())
    dataset = dataset.map_batches(  # without a CPU of its own, as with engine=ray
        Network, fn_constructor_args=arguments, batch_size=run.spec.batch_size, concurrency=1, num_cpus=0
    )
    dataset.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
