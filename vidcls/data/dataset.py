"""Stored videos as a map-style dataset, and the samplers that say which video comes when and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vidcls.data.sampling import select_frames
from vidcls.data.store import Store


class Clip(NamedTuple):
    """One video, or with a leading B a batch of them.

    Attributes:
        frames: uint8 [T, H, W, 3].
        label: int64, the class's place in the class order.
        row: int64, the video's place in its split.
    """

    frames: Tensor
    label: Tensor
    row: Tensor


class Draw(NamedTuple):
    """What a sampler asks of a dataset: a row, and a seed for what is random about reading it."""

    row: int
    seed: int


class VideoDataset(Dataset[Clip]):
    """The videos of one split.

    Args:
        store: where the frames are.
        sha256s: the videos' content hashes.
        labels: the videos' classes, as places in the class order.
        num_frames: T, frames used out of the F stored.
        temporal_jitter: choose each frame at random from its run of F / T stored ones instead of the middle one.
    """

    def __init__(
        self, store: Store, sha256s: list[str], labels: list[int], num_frames: int, temporal_jitter: bool
    ) -> None:
        self.store = store
        self.sha256s = sha256s
        self.labels = labels
        self.num_frames = num_frames
        self.temporal_jitter = temporal_jitter

    def __len__(self) -> int:
        return len(self.sha256s)

    def __getitem__(self, draw: Draw) -> Clip:
        jitter = np.random.default_rng(draw.seed) if self.temporal_jitter else None
        frames = self.frames(draw.row, jitter)
        return Clip(torch.from_numpy(frames), torch.tensor(self.labels[draw.row]), torch.tensor(draw.row))

    def frames(self, row: int, jitter: np.random.Generator | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames of one video."""
        indices = select_frames(self.store.num_frames, self.num_frames, self.store.sampling, jitter)
        return self.store.read(self.sha256s[row], indices)


class VideoSampler(Sampler[Draw]):
    """The order of one epoch, a pure function of seed and epoch; over several devices, this device's share of it.

    Shuffled (for training), every share has the same length: the first few videos fill up the last round, as
    gradients are exchanged in step. In order (for evaluation), each video is in exactly one share.

    Args:
        length: N, videos in the split.
        shuffle: training order or file order.
        seed: of the whole run.
        rank: this device.
        world_size: devices in all.

    Example:
        >>> [draw.row for draw in VideoSampler(5, shuffle=False, seed=0, rank=1, world_size=2)]
        [1, 3]
        >>> len(VideoSampler(5, shuffle=True, seed=0, rank=1, world_size=2))
        3
    """

    def __init__(self, length: int, *, shuffle: bool, seed: int, rank: int, world_size: int) -> None:
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (
            -(-self.length // self.world_size) if self.shuffle else len(range(self.rank, self.length, self.world_size))
        )

    def __iter__(self) -> Iterator[Draw]:
        generator = np.random.default_rng([self.seed, self.epoch])
        rows, seeds = np.arange(self.length), generator.integers(2**31, size=self.length)
        if self.shuffle:
            generator.shuffle(rows)
            rows = np.resize(rows, len(self) * self.world_size)  # repeats from the start
        for row in rows[self.rank :: self.world_size]:
            yield Draw(int(row), int(seeds[row]))
