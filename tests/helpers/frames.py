"""Frames that tests of the decoders encode, and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.plan import Window, WindowPlan
from vidcls.data.decoding.result import DECODERS, DecodeResult
from vidcls.data.decoding.windows import WindowStream, stream_windows
from vidcls.data.sampling import StoreSpec

SIDE = 32
EACH_DECODER = pytest.mark.parametrize("decoder", DECODERS)


def numbered(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames whose brightness is their number, for `numbers` to read; 40 at most."""
    levels = (16 + 6 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def numbers(frames: np.ndarray) -> list[int]:
    assert frames.std(axis=(1, 2, 3)).max() < 2  # plain pictures: nothing of a neighbour is mixed in
    return np.round((frames.mean(axis=(1, 2, 3)) - 15.5) / 6).astype(int).tolist()


def moving(count: int, height: int = 96, width: int = 128, shade: int = 0) -> np.ndarray:
    """A soft pattern in grey that moves: each frame differs from each other, as does each side."""
    y, x = np.mgrid[:height, :width]
    values = [128 + 50 * np.sin((x + 3 * t) / 17) + 40 * np.cos((y - 2 * t) / 11) + x / 5 + shade for t in range(count)]
    return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def read(
    path: Path, num_frames: int, *decoders: str, sampling: str = "uniform", resolution: int = SIDE
) -> tuple[np.ndarray, DecodeResult]:
    return decode(path, StoreSpec(num_frames, resolution, sampling), decoders or DECODERS)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


def stream(
    path: Path, num_frames: int, window: float, stride: float, sampling: str = "uniform", threads: int = 1
) -> WindowStream:
    plan = WindowPlan(StoreSpec(num_frames, SIDE, sampling), window, stride, 0.0)
    return stream_windows(path, plan, DECODERS, threads)


def spans(windows: list[Window]) -> list[tuple[float, float]]:
    return [(round(window.start_seconds, 6), round(window.end_seconds, 6)) for window in windows]
