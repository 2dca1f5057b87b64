"""Stored videos as map-style datasets, and the sampler that orders them and shards them over devices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vidcls.data.sampling import select_frames
from vidcls.data.store import FeatureStore, FrameStore


class VideoBatch(NamedTuple):
    """One video, or with a leading B a batch of them."""

    frames: Tensor  # uint8 [T, H, W, 3]; of all of M > 1 clips [M, T, H, W, 3]
    label: Tensor  # int64, the index of the class
    index: Tensor  # type: ignore[assignment]  # int64, the video's index in its split; not the method of tuples


class FeatureBatch(NamedTuple):
    """As `VideoBatch`, with the cached features of a frozen encoder instead of frames."""

    features: Tensor  # float [T', D] or [D]; of all of M > 1 clips [M, ...]
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # not the method of tuples


class SampleIndex(NamedTuple):
    """What a sampler yields: a video's index in its split, and a seed for the random choice of its clip and frames."""

    index: int  # type: ignore[assignment]  # not the method of tuples
    seed: int = 0


def random_clip(generator: np.random.Generator, count: int) -> int:
    """Which of the M clips of a video is trained on; draws nothing for a single clip."""
    return int(generator.integers(count)) if count > 1 else 0


@dataclass(eq=False)
class VideoDataset(Dataset[VideoBatch]):
    """The videos of one split."""

    store: FrameStore  # where the frames are, by the videos' ``sha256s``
    sha256s: list[str]
    labels: list[int]  # the indices of their classes
    num_frames: int  # T, frames used out of the F stored
    temporal_jitter: bool  # choose each frame at random from its run of F / T stored ones instead of the middle one
    all_clips: bool = False  # return all of a video's M > 1 clips, for evaluation, instead of a random one

    def __len__(self) -> int:
        return len(self.sha256s)

    def __getitem__(self, sample: SampleIndex | int) -> VideoBatch:
        index, seed = sample if isinstance(sample, SampleIndex) else SampleIndex(sample)
        chosen = self.chosen(seed)
        frames = self.store.read(self.sha256s[index], chosen.reshape(-1))  # [T or M * T, H, W, 3]
        clips = torch.from_numpy(frames).unflatten(0, chosen.shape)
        return VideoBatch(clips, torch.tensor(self.labels[index]), torch.tensor(index))

    @property
    def is_random(self) -> bool:
        """Whether samples differ in the frames they choose."""
        return self.temporal_jitter or (self.store.spec.num_clips > 1 and not self.all_clips)

    def chosen(self, seed: int) -> Int[np.ndarray, "*indices"]:
        """The indices of a sample's frames among the M * F stored ones: [T], or of all M > 1 clips [M, T]."""
        generator, count = np.random.default_rng(seed), self.store.spec.num_clips
        if count > 1 and self.all_clips:
            return np.stack([self._frame_indices(clip) for clip in range(count)])
        return self._frame_indices(random_clip(generator, count), generator if self.temporal_jitter else None)

    def stack(self, index: int) -> UInt8[np.ndarray, "S H W 3"]:
        """All stored frames of a video."""
        return self.store.read(self.sha256s[index], np.arange(self.store.spec.frames_per_video))

    def frames(self, index: int, clip: int | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames of one clip of a video, by default the middle one."""
        clip = self.store.spec.num_clips // 2 if clip is None else clip
        return self.store.read(self.sha256s[index], self._frame_indices(clip))

    def _frame_indices(self, clip: int, jitter: np.random.Generator | None = None) -> Int[np.ndarray, " T"]:
        spec = self.store.spec
        return clip * spec.stored_frames + select_frames(spec.stored_frames, self.num_frames, spec.sampling, jitter)


@dataclass(eq=False)
class FeatureDataset(Dataset[FeatureBatch]):
    """The videos of one split by their cached features; of M > 1 clips ``store`` holds those of all, [M, *features]."""

    videos: VideoDataset
    store: FeatureStore

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, sample: SampleIndex | int) -> FeatureBatch:
        index, seed = sample if isinstance(sample, SampleIndex) else SampleIndex(sample)
        features = self.stack(index)[self.chosen(seed)]
        return FeatureBatch(torch.from_numpy(features), torch.tensor(self.labels[index]), torch.tensor(index))

    @property
    def labels(self) -> list[int]:
        return self.videos.labels

    @property
    def is_random(self) -> bool:
        """Whether samples differ in the clip they choose."""
        return self.videos.store.spec.num_clips > 1 and not self.videos.all_clips

    def chosen(self, seed: int) -> Int[np.ndarray, "*indices"]:
        """The index of a sample's clip among the M stored ones, []; or of all M > 1 clips, [M]."""
        count = self.videos.store.spec.num_clips
        if count > 1 and self.videos.all_clips:
            return np.arange(count)
        return np.array(random_clip(np.random.default_rng(seed), count))

    def stack(self, index: int) -> Float[np.ndarray, "M *features"]:
        features = self.store.read(self.videos.sha256s[index])
        return features if self.videos.store.spec.num_clips > 1 else features[None]


@dataclass(eq=False, kw_only=True)
class VideoSampler(Sampler[SampleIndex]):
    """This rank's shard of the order of one epoch, which is a pure function of seed and epoch.

    Shuffled (for training), all shards have the same length, as gradients are exchanged in step: the first few videos
    are repeated. In order (for evaluation), each video is in exactly one shard; but no shard is empty, as its rank
    would not take part in gathering: where ranks outnumber videos, some get the same video.

    With the videos' classes in ``balance``, each class has an equal share of an epoch's N draws, up to one: videos of
    a small class are repeated, those of a large one take turns over the epochs.

    >>> [sample.index for sample in VideoSampler(length=5, shuffle=False, seed=0, rank=1, world_size=2)]
    [1, 3]
    """

    length: int
    shuffle: bool
    seed: int
    rank: int
    world_size: int
    balance: Sequence[int] | None = None
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return -(-self.length // self.world_size)
        return max(len(range(self.rank, self.length, self.world_size)), min(self.length, 1))

    def __iter__(self) -> Iterator[SampleIndex]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order, seeds = np.arange(self.length), generator.integers(2**31, size=self.length)
        rows = order.copy() if self.balance is None else self._balanced(np.asarray(self.balance))
        if self.shuffle:
            generator.shuffle(order)
            order = np.resize(order, len(self) * self.world_size)  # repeats from the start
        shard = order[self.rank if self.rank < len(order) else 0 :: self.world_size]
        yield from map(SampleIndex, rows[shard].tolist(), seeds[shard].tolist())

    def _balanced(self, classes: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """The epoch's videos, before shuffling.

        Over all epochs the draws cycle through the classes, abcabcabc..., and each class cycles through its videos,
        reshuffled in each cycle. An epoch is N such draws; the next one continues from there.
        """
        rows, names = np.empty(self.length, int), np.unique(classes)
        turns = self.epoch * self.length + np.arange(self.length)
        for number, name in enumerate(names):
            videos, own = np.flatnonzero(classes == name), turns % len(names) == number
            rounds, offsets = np.divmod(turns[own] // len(names), len(videos))
            orders = {r: np.random.default_rng([self.seed, r, 1 + number]).permutation(videos) for r in set(rounds)}
            rows[own] = [orders[r][offset] for r, offset in zip(rounds, offsets, strict=True)]
        return rows
