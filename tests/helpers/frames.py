"""Frames that tests of the decoders encode, and read again."""

from __future__ import annotations

import numpy as np
import pytest

from vidcls.data.decoding.result import DECODERS

SIDE = 32
EACH_DECODER = pytest.mark.parametrize("decoder", DECODERS)


def numbered(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames whose brightness is their number, for `numbers` to read; 40 at most."""
    levels = (16 + 6 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def numbers(frames: np.ndarray) -> list[int]:
    assert frames.std(axis=(1, 2, 3)).max() < 2  # plain pictures: nothing of a neighbour is mixed in
    return np.round((frames.mean(axis=(1, 2, 3)) - 15.5) / 6).astype(int).tolist()


def moving(count: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A soft pattern in grey that moves: each frame differs from each other, as does each side."""
    y, x = np.mgrid[:height, :width]
    values = [128 + 50 * np.sin((x + 3 * t) / 17) + 40 * np.cos((y - 2 * t) / 11) + x / 5 for t in range(count)]
    return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
