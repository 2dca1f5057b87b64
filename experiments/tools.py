"""What the experiments share: composing a configuration as train.py does, and stores of made-up clips."""

from __future__ import annotations

import os
import platform
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from scipy import stats

from vidcls.data.datamodule import VideoDataModule
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.options import DataOptions
from vidcls.training.module import VideoClassifier

ROOT = Path(__file__).parent.parent


def compose_train(run_dir: Path, *overrides: str) -> DictConfig:
    """The configuration of ``python train.py ...`` with its run folder in ``run_dir``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"run_dir={run_dir}", *overrides])
    with open_dict(cfg):
        cfg.run_dir = str(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    return cfg


def noise_videos(options: DataOptions, videos: int) -> VideoDataModule:
    """``videos`` synthetic clips of noise in the store as the training split (and 8 of them as val).

    Every 256th has the same frames: reading them costs the same, and writing them less.
    """
    generator, datamodule = np.random.default_rng(0), VideoDataModule(options)
    store, size = datamodule.store, options.store.stored_resolution
    shape = (options.store.frames_per_video, size, size, 3)
    result = DecodeResult("ok", "", "noise", seconds=1.0, coverage=1.0)
    rows = []
    for number in range(videos):
        sha256 = f"{number:064x}"
        if not store.path(sha256).exists() and number >= 256:
            store.path(sha256).parent.mkdir(parents=True, exist_ok=True)
            os.link(store.path(f"{number % 256:064x}"), store.path(sha256))
        elif not store.path(sha256).exists():
            store.write(sha256, generator.integers(256, size=shape, dtype=np.uint8), result)
        rows.append([f"{number}.mp4", str(number % 2), "train", "", sha256, "ok"])
    held_out = [[path, label, "val", *rest] for path, label, _, *rest in rows[:8]]
    columns = ["path", "label", "split", "creator", "sha256", "status"]
    datamodule.load_manifest(pd.DataFrame(rows + held_out, columns=columns))
    return datamodule


def training_tensors(datamodule: VideoDataModule, module: VideoClassifier) -> tuple[torch.Tensor, torch.Tensor]:
    """The training split, preprocessed, in memory: float [N, T, 3, R, R] and labels [N]."""
    clips = [clip for batch in datamodule.loader("train") for clip in module.preprocess(batch.frames)]
    labels = torch.tensor(datamodule.dataset("train").labels)
    return torch.stack(clips), labels


def real_clips() -> Path | None:
    """The folder of real clips that the environment variable VIDCLS_REAL_DATA names, if any."""
    folder = Path(os.environ.get("VIDCLS_REAL_DATA", "missing"), "fights")
    return folder if folder.is_dir() else None


def needed_clips() -> Path:
    """`real_clips`, or the end of the program, in one line."""
    clips = real_clips()
    if clips is None:
        raise SystemExit("expected VIDCLS_REAL_DATA to name the folder of real clips; got nothing. Set it.")
    return clips


def mean_over_seeds(values: pd.Series) -> str:
    """The mean with its 95 % interval (Student's t)."""
    if values.isna().any():
        return "-"
    if values.nunique() == 1:
        return f"{values.mean():.3f} (all {len(values)} alike)"
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def machine() -> str:
    """The machine, in words."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {platform.machine()}, {device}, torch {torch.__version__}"


def join(clips: Sequence[Path], target: Path, width: int, height: int, fps: int = 25) -> list[tuple[float, float]]:
    """Encodes ``clips`` one after the other as one H.264 video; gives the (start, end) of each, in seconds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    spans, count = [], 0
    with av.open(str(target), "w") as joined:
        out = joined.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23"})
        out.width, out.height, out.pix_fmt = width, height, "yuv420p"
        for clip in clips:
            start = count
            with av.open(str(clip)) as container:
                frames = [
                    (float(frame.time), frame.reformat(width, height, "yuv420p")) for frame in container.decode(video=0)
                ]
            step = frames[1][0] - frames[0][0]
            times = [time - frames[0][0] for time, _ in frames]
            for n in range(round((times[-1] + step) * fps)):
                frame = frames[bisect_right(times, n / fps + 1e-6) - 1][1]  # what is on screen then
                frame.pts, frame.time_base = count, Fraction(1, fps)
                joined.mux(out.encode(frame))
                count += 1
            spans.append((start / fps, count / fps))
        joined.mux(out.encode())
    return spans
