"""Keeps small data sets in GPU memory, so that an epoch reads and copies nothing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidcls.data.dataset import FeatureBatch, FeatureDataset, SampleIndex, VideoBatch, VideoDataset


def fits_on_device(needed_bytes: int, limit_gigabytes: float | int, free_bytes: int) -> bool:
    """Whether data fit in the limit and in a quarter of the free memory, as training needs the rest.

    Example:
        >>> fits_on_device(2 * 2**30, limit_gigabytes=4, free_bytes=70 * 2**30)
        True
        >>> fits_on_device(2 * 2**30, limit_gigabytes=4, free_bytes=6 * 2**30)
        False
    """
    return needed_bytes <= min(limit_gigabytes * 2**30, free_bytes / 4)


def stack_videos(dataset: VideoDataset | FeatureDataset, device: torch.device) -> Tensor:
    """All stored frames or features of a dataset, [N, S, ...] on ``device``; raises `StoreEntryError`."""
    first = torch.from_numpy(dataset.stack(0))
    stacks = torch.empty((len(dataset), *first.shape), dtype=first.dtype, device=device)
    for row in range(len(dataset)):
        stacks[row] = torch.from_numpy(dataset.stack(row))
    return stacks


class DeviceDataset(Dataset[Any]):
    """A dataset whose ``stacks`` [N, S, ...] are on a device; for `DeviceLoader`."""

    def __init__(self, dataset: VideoDataset | FeatureDataset, stacks: Tensor) -> None:
        self.dataset = dataset
        self.item_shape = stacks.shape[2:]
        self.dtype = stacks.dtype
        flat = stacks.flatten(2)
        # Copying 8 bytes at a time is faster than single ones.
        wide = flat.shape[2] * flat.element_size() % 8 == 0
        self.stacks = flat.view(torch.int64) if wide else flat
        self.labels = torch.tensor(dataset.labels, device=stacks.device)

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, samples: list[SampleIndex], batch_size: int) -> Iterator[VideoBatch | FeatureBatch]:
        """The dataset's ``samples`` in batches; copies all indices to the device at once."""
        dataset, device = self.dataset, self.labels.device
        build = VideoBatch if isinstance(dataset, VideoDataset) else FeatureBatch
        seeds = [sample.seed for sample in samples] if dataset.is_random else [0]
        chosen = torch.from_numpy(np.stack([dataset.chosen(seed) for seed in seeds])).to(device)  # [n or 1, ...]
        rows = torch.tensor([sample.index for sample in samples], device=device)
        for first in range(0, len(samples), batch_size):
            index = rows[first : first + batch_size]
            positions = chosen[first : first + batch_size] if dataset.is_random else chosen
            data = self.stacks[index.view(-1, *[1] * (positions.dim() - 1)), positions]
            yield build(data.view(self.dtype).unflatten(-1, self.item_shape), self.labels[index], index)


class DeviceLoader(DataLoader[Any]):
    """The batches of a `DeviceDataset`, equal to those of a `DataLoader` of its dataset with the same sampler."""

    dataset: DeviceDataset

    def __iter__(self) -> Any:
        assert self.batch_size is not None
        # The samplers that Lightning may put here give plain indices.
        samples = [sample if isinstance(sample, SampleIndex) else SampleIndex(sample) for sample in self.sampler]
        return self.dataset.batches(samples, self.batch_size)
