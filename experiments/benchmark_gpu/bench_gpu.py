"""Clips per second of train.py on a GPU beside plain loops with the same network, and videos per second of predict.py.

See README.md. Writes results.json beside this file, or to --output.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.tools import ROOT, compose_train, machine, noise_videos
from vidcls.data.datamodule import VideoDataModule
from vidcls.data.demo import draw_demo
from vidcls.models.backbones import build_net
from vidcls.training import loop
from vidcls.training.callbacks import Timing, find_callback
from vidcls.training.module import VideoClassifier
from vidcls.training.optim import build_optimizer

LOOP_SECONDS = 2.0  # of each plain loop, after its warm-up
CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Case:
    """A training whose speed is measured, on noise in the shape of clips."""

    name: str
    overrides: tuple[str, ...]
    clips: int
    epochs: int


LSTM = ("model=cnn_lstm",)
R3D = ("model=r3d_18", "data.num_frames=16", "data.resolution=112", "data.batch_size=16")
# Its output layer trained in steps, as its logistic regression has none.
STRONG = ("experiment=strong", "optim=adamw", "refit=false", "model.standardise=false", "model.dropout=0.5")
CASES = (
    Case("cnn_lstm, batch 64", (*LSTM, "data.batch_size=64"), 4096, 8),
    Case("r3d_18, 16 x 112 x 112, batch 16", R3D, 1024, 3),
    Case("strong, batch 4", STRONG, 256, 15),
    Case("cnn_lstm, batch 4", (*LSTM, "data.batch_size=4"), 2048, 3),
    Case("cnn_lstm, batch 256", (*LSTM, "data.batch_size=256"), 4096, 12),
)
COMPILED = (
    Case("cnn_lstm, batch 4, compiled", (*LSTM, "data.batch_size=4", "compile=true"), 2048, 4),
    Case("cnn_lstm, batch 256, compiled", (*LSTM, "data.batch_size=256", "compile=true"), 4096, 12),
    Case("r3d_18, compiled", (*R3D, "compile=true"), 1024, 4),
)


def train(case: Case, folder: Path, *overrides: str) -> tuple[VideoClassifier, VideoDataModule, dict[str, Any]]:
    """Trains as train.py does after its start-up; gives the timing of metrics.json."""
    run = Path(tempfile.mkdtemp(dir=folder))
    given = [*case.overrides, *overrides, f"trainer.max_epochs={case.epochs}", f"cache_dir={folder / 'cache'}"]
    if case.name.startswith("strong"):
        given.append(f"model.encoder.weights={random_weights(folder)}")
    cfg = compose_train(run / "run", "data=folder", "data.source=none", "trainer=gpu", *given)
    datamodule = noise_videos(instantiate(cfg.data), case.clips)
    module = loop.build_module(cfg, datamodule)
    trainer, _ = loop.fit(cfg, module, datamodule)
    return module, datamodule, find_callback(trainer, Timing).summary()


def random_weights(folder: Path) -> Path:
    """A file of random weights of the encoder of experiment=strong: its speed does not depend on them."""
    path = folder / "weights.pt"
    if not path.exists():
        torch.save(build_net("timm/tf_efficientnet_lite0", 3).state_dict(), path)
    return path


def plain_loop(module: VideoClassifier, batches: Iterator[tuple[Tensor, Tensor]], network: Callable[..., Any]) -> float:
    """Clips per second of forward, backward and optimiser steps, in bf16, with nothing around them."""
    optimizer = build_optimizer(module.optim, module.model.stages(), 1, 1, fused=True)["optimizer"]
    module.train()

    def steps(seconds: float) -> float:
        torch.cuda.synchronize()
        clips, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(10):
                inputs, labels = next(batches)
                optimizer.zero_grad()
                with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                    loss = F.cross_entropy(network(inputs), labels)
                loss.backward()
                optimizer.step()
                clips += len(labels)
            torch.cuda.synchronize()
        return clips / (time.perf_counter() - started)

    steps(1.0)  # the first ones choose kernels
    return steps(LOOP_SECONDS)


def on_device(inputs: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches that are on the GPU already."""
    pairs = zip(inputs.to(CUDA).split(batch_size), labels.to(CUDA).split(batch_size), strict=True)
    return cycle([pair for pair in pairs if len(pair[1]) == batch_size])


def from_memory(inputs: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches out of one array in the machine's memory."""
    while True:
        for rows in torch.randperm(len(labels)).split(batch_size):
            if len(rows) == batch_size:
                batch = [part[rows].pin_memory().to(CUDA, non_blocking=True) for part in (inputs, labels)]
                yield batch[0], batch[1]


def bench(case: Case, folder: Path) -> dict[str, Any]:
    """One row: train.py from the GPU's memory and from loader processes, a loop that only computes, one from memory."""
    module, datamodule, cached = train(case, folder)
    _, _, loaded = train(case, folder, "data.device_cache=0")
    size, dataset = datamodule.options.batch_size, datamodule.dataset("train", train=True)
    labels = torch.tensor(dataset.labels)
    if datamodule.features is None:
        network: Callable[[Tensor], Tensor] = module
        inputs = torch.stack([dataset[row].frames for row in range(min(len(dataset), 1024))])
    else:
        features = datamodule.features
        network = module.model.classify
        inputs = torch.stack([torch.from_numpy(features.read(sha256)) for sha256 in dataset.sha256s])
    module.to(CUDA)
    labels = labels[: len(inputs)]
    bound = plain_loop(module, on_device(inputs, labels, size), network)
    memory = plain_loop(module, from_memory(inputs, labels, size), network)
    return {
        "case": case.name,
        "train_clips_per_second": round(cached["clips_per_second"], 1),
        "compute_only_clips_per_second": round(bound, 1),
        "ratio": round(cached["clips_per_second"] / bound, 3),
        "waited": round(cached["data_wait_fraction"], 4),
        "train_without_device_cache": round(loaded["clips_per_second"], 1),
        "waited_without_device_cache": round(loaded["data_wait_fraction"], 4),
        "from_memory_clips_per_second": round(memory, 1),
        "peak_gigabytes": round((cached["peak_memory_bytes"] or 0) / 2**30, 2),
    }


def bench_predict(folder: Path) -> dict[str, Any]:
    """Videos per second of predict.py, decoded on the CPU; start-up is left out, as what a single video takes."""
    source = folder / "demo"
    draw_demo(source, seed=0, creators=28, videos_per_creator=9)
    given = ["data=folder", f"data.source={source}", f"cache_dir={folder / 'cache'}", "data.batch_size=64"]
    cfg = compose_train(folder / "predicted", *given, "trainer=gpu", "trainer.max_epochs=1", "data.num_workers=0")
    (folder / "predicted" / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    datamodule = loop.build_datamodule(cfg)
    loop.fit(cfg, loop.build_module(cfg, datamodule), datamodule)
    one = next(source.rglob("*.mp4"))
    seconds = {}
    for name, path in (("one", one), ("all", source)):
        command = [sys.executable, str(ROOT / "predict.py"), f"run={folder / 'predicted'}", f"input={path}"]
        started = time.perf_counter()
        subprocess.run([*command, f"output={folder / name}"], check=True, stdout=subprocess.DEVNULL)
        seconds[name] = time.perf_counter() - started
    videos = len(list(source.rglob("*.mp4")))
    speed = (videos - 1) / (seconds["all"] - seconds["one"])
    return {"videos": videos, "videos_per_second": round(speed, 1), "seconds": seconds}


def main() -> None:
    """Measures all cases, as far as the time reaches, and writes the results after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240, help="no case starts after so many")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--compiled", action="store_true", help="with compile=true as well")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("expected a CUDA GPU; got none that torch can see. Run make bench-gpu on a machine that has one.")
    loop.silence_lightning()
    started = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(), "rows": [], "predict": None, "left_out": []}
    with tempfile.TemporaryDirectory() as name:
        for case in (*CASES, "predict", *(COMPILED if arguments.compiled else ())):
            if time.perf_counter() - started > arguments.seconds:
                results["left_out"].append(case if isinstance(case, str) else case.name)
            elif isinstance(case, str):
                results["predict"] = bench_predict(Path(name))
                print(results["predict"], flush=True)
            else:
                results["rows"].append(bench(case, Path(name)))
                print(results["rows"][-1], f"after {time.perf_counter() - started:.0f} s", flush=True)
            arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print("marks: ratio >= 0.95; r3d_18 >= 425 clips/s on one H100")


if __name__ == "__main__":
    main()
