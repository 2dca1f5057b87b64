"""Stored videos as a map-style dataset, and the samplers that say which video comes when and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vidcls.data.sampling import select_frames
from vidcls.data.store import Store


class VideoBatch(NamedTuple):
    """One video, or with a leading B a batch of them.

    Attributes:
        frames: uint8 [T, H, W, 3]; of all of M > 1 clips [M, T, H, W, 3].
        label: int64, the class's place in the class order.
        index: int64, the video's place in its split.
    """

    frames: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # not the method of tuples


class FeatureBatch(NamedTuple):
    """As `VideoBatch`, with the cached features of a frozen encoder instead of frames.

    Attributes:
        features: float [T', D] or [D]; of all of M > 1 clips [M, ...].
        label: int64, the class's place in the class order.
        index: int64, the video's place in its split.
    """

    features: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # not the method of tuples


class Draw(NamedTuple):
    """What a sampler asks of a dataset: a row, and a seed for what is random about reading it."""

    row: int
    seed: int


def drawn_clip(random: np.random.Generator, count: int) -> int:
    """Which of the clips that stand for a video is trained on; of one clip, nothing is drawn."""
    return int(random.integers(count)) if count > 1 else 0


class VideoDataset(Dataset[VideoBatch]):
    """The videos of one split.

    Args:
        store: where the frames are.
        sha256s: the videos' content hashes.
        labels: the videos' classes, as places in the class order.
        num_frames: T, frames used out of the F stored.
        temporal_jitter: choose each frame at random from its run of F / T stored ones instead of the middle one.
        every_clip: of M > 1 clips that stand for a video give all, to be judged, instead of one drawn at random.
    """

    def __init__(
        self,
        store: Store,
        sha256s: list[str],
        labels: list[int],
        num_frames: int,
        temporal_jitter: bool,
        every_clip: bool = False,
    ) -> None:
        self.store = store
        self.sha256s = sha256s
        self.labels = labels
        self.num_frames = num_frames
        self.temporal_jitter = temporal_jitter
        self.every_clip = every_clip

    def __len__(self) -> int:
        return len(self.sha256s)

    def __getitem__(self, draw: Draw) -> VideoBatch:
        random, count = np.random.default_rng(draw.seed), self.store.clips.count
        if count > 1 and self.every_clip:
            frames = np.stack([self.frames(draw.row, clip) for clip in range(count)])
        else:
            frames = self.frames(draw.row, drawn_clip(random, count), random if self.temporal_jitter else None)
        return VideoBatch(torch.from_numpy(frames), torch.tensor(self.labels[draw.row]), torch.tensor(draw.row))

    def frames(
        self, row: int, clip: int | None = None, jitter: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames of one clip of a video; None: of the one in the middle."""
        first = (self.store.clips.count // 2 if clip is None else clip) * self.store.num_frames
        indices = select_frames(self.store.num_frames, self.num_frames, self.store.sampling, jitter)
        return self.store.read(self.sha256s[row], first + indices)


class VideoSampler(Sampler[Draw]):
    """The order of one epoch, a pure function of seed and epoch; over several devices, this device's share of it.

    Shuffled (for training), every share has the same length: the first few videos fill up the last round, as
    gradients are exchanged in step. In order (for evaluation), each video is in exactly one share.

    Balanced (for training), each class has an equal share of an epoch's N draws, up to one: videos of a small class
    come several times, those of a large one take turns over the epochs.

    Args:
        length: N, videos in the split.
        shuffle: training order or file order.
        balance: the videos' classes, to draw each class alike; None draws each video once.
        seed: of the whole run.
        rank: this device.
        world_size: devices in all.

    Example:
        >>> [draw.row for draw in VideoSampler(5, shuffle=False, seed=0, rank=1, world_size=2)]
        [1, 3]
        >>> len(VideoSampler(5, shuffle=True, seed=0, rank=1, world_size=2))
        3
        >>> classes = [0, 0, 0, 0, 1]
        >>> drawn = VideoSampler(5, shuffle=True, balance=classes, seed=0, rank=0, world_size=1)
        >>> sorted(classes[draw.row] for draw in drawn)
        [0, 0, 0, 1, 1]
    """

    def __init__(
        self,
        length: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
        balance: Sequence[int] | None = None,
    ) -> None:
        self.length = length
        self.balance = balance
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
        places, seeds = np.arange(self.length), generator.integers(2**31, size=self.length)
        rows = places.copy() if self.balance is None else self._balanced(np.asarray(self.balance))
        if self.shuffle:
            generator.shuffle(places)
            places = np.resize(places, len(self) * self.world_size)  # repeats from the start
        for place in places[self.rank :: self.world_size]:
            yield Draw(int(rows[place]), int(seeds[place]))

    def _balanced(self, classes: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """The epoch's rows, not yet in order.

        Over all epochs the draws go round the classes, abcabcabc..., and each class goes round its videos, each time
        in another order. An epoch is N draws of that, so the next one goes on where it ends.
        """
        rows, names = np.empty(self.length, int), np.unique(classes)
        turns = self.epoch * self.length + np.arange(self.length)
        for place, name in enumerate(names):
            videos, mine = np.flatnonzero(classes == name), turns % len(names) == place
            rounds, seats = np.divmod(turns[mine] // len(names), len(videos))
            orders = {r: np.random.default_rng([self.seed, r, 1 + place]).permutation(videos) for r in set(rounds)}
            rows[mine] = [orders[r][seat] for r, seat in zip(rounds, seats, strict=True)]
        return rows
