"""A data set whose frames and videos tell their numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from helpers.videos import write_video
from vidcls.data.datamodule import VideoDataModule
from vidcls.data.options import DataOptions
from vidcls.data.preparation import prepare_videos

LAYOUT = {  # what each split of the source holds; "harmful" is missing from val
    "train": {"safe": 4, "harmful": 2, "adult": 2},
    "val": {"safe": 1, "adult": 2},
    "test": {"safe": 1, "harmful": 2, "adult": 1},
}


def draw(path: Path, number: int) -> Path:
    """40 frames whose brightness is the frame's number, with a stripe on the right that is the video's ``number``."""
    frames = np.empty((40, 32, 64, 3), np.uint8)
    frames[:, :, :32] = (10 + 6 * np.arange(40))[:, None, None, None]
    frames[:, :, 32:] = 6 * number
    return write_video(path, frames, options={"crf": "0", "preset": "ultrafast"})


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers of the frames of a clip [T, H, W, 3]."""
    left = frames[:, :, : frames.shape[2] * 3 // 8].float()
    return ((left.mean((1, 2, 3)) - 9.5) / 6).round().int().tolist()


def module(source: Path, cache: Path, **settings: Any) -> VideoDataModule:
    defaults = {"num_frames": 4, "resolution": 32, "batch_size": 3, "decode": {"workers": 1}}
    return VideoDataModule(DataOptions(str(source), str(cache), **(defaults | settings)))


def prepare(data: VideoDataModule) -> str:
    """Prepares ``data`` and returns what it printed."""
    written = io.StringIO()
    prepared = prepare_videos(data.options, Console(file=written, width=1000))
    data.load_manifest(prepared.manifest)
    data.stats = prepared.stats
    return written.getvalue()
