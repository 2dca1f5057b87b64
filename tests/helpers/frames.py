"""Helpers that several test files share."""

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
