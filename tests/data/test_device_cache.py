"""Batches from stacks on a device equal those of the loaders; here the device is the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from vidcls.data.dataset import FeatureDataset, VideoDataset, VideoSampler
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.device_cache import DeviceDataset, DeviceLoader, fits_on_device, stack_videos
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FeatureStore, FrameStore

CPU = torch.device("cpu")
SHA256S = [f"{number:064x}" for number in range(7)]
LABELS = [0, 2, 1, 0, 1, 2, 0]


def videos(folder: Path, clips: int, jitter: bool, all_clips: bool, side: int) -> VideoDataset:
    spec = StoreSpec(6, side, "uniform", 1.0 if clips > 1 else None, clips)
    store, generator = FrameStore(folder, spec), np.random.default_rng(0)
    for sha256 in SHA256S:
        frames = generator.integers(256, size=(6 * clips, side, side, 3), dtype=np.uint8)
        store.write(sha256, frames, DecodeResult("ok", "", "noise", seconds=1.0, coverage=1.0))
    return VideoDataset(store, SHA256S, LABELS, num_frames=3, temporal_jitter=jitter, all_clips=all_clips)


def assert_same_batches(dataset: VideoDataset | FeatureDataset, balance: bool = False, rank: int = 0) -> None:
    def sampler() -> VideoSampler:
        return VideoSampler(
            length=len(dataset), shuffle=True, seed=3, rank=rank, world_size=2, balance=LABELS if balance else None
        )

    expected: DataLoader[object] = DataLoader(dataset, batch_size=3, sampler=sampler())
    held = DeviceDataset(dataset, stack_videos(dataset, CPU))
    actual = DeviceLoader(held, batch_size=3, sampler=sampler())
    assert len(actual) == len(expected)
    for epoch in range(3):
        for loader in (expected, actual):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        pairs = list(zip(expected, actual, strict=True))
        assert len(pairs) == len(expected)
        for one, two in pairs:
            assert type(one) is type(two)
            for left, right in zip(one, two, strict=True):
                assert left.dtype == right.dtype and left.stride() == right.stride() and torch.equal(left, right)


@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize("jitter", [False, True])
@pytest.mark.parametrize("all_clips", [False, True])
def test_frames_are_those_of_the_loader(tmp_path: Path, clips: int, jitter: bool, all_clips: bool) -> None:
    assert_same_batches(videos(tmp_path, clips, jitter, all_clips, side=8), balance=jitter, rank=clips % 2)


def test_frames_need_not_be_words_of_8_bytes(tmp_path: Path) -> None:
    assert_same_batches(videos(tmp_path, 1, jitter=False, all_clips=False, side=5))


@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize("all_clips", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 4)])
def test_features_are_those_of_the_loader(tmp_path: Path, clips: int, all_clips: bool, shape: tuple[int, ...]) -> None:
    frames, store = videos(tmp_path / "frames", clips, False, all_clips, side=4), FeatureStore(tmp_path / "features")
    generator = np.random.default_rng(0)
    for sha256 in SHA256S:
        features = generator.normal(size=(clips, *shape)).astype(np.float32)
        store.write(sha256, features if clips > 1 else features[0])
    assert_same_batches(FeatureDataset(frames, store))


def test_samplers_of_plain_indices_work(tmp_path: Path) -> None:
    """Lightning puts one in for trainer.overfit_batches."""
    dataset = videos(tmp_path, 1, jitter=False, all_clips=False, side=4)
    held = DeviceDataset(dataset, stack_videos(dataset, CPU))
    batches = list(DeviceLoader(held, batch_size=4, sampler=SequentialSampler(held)))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(7))
    assert torch.equal(batches[1].frames[0], dataset[4].frames)


def test_only_what_is_small_stays_on_the_device() -> None:
    assert fits_on_device(2**30, 1.0, 2**40)
    assert not fits_on_device(2**30 + 1, 1.0, 2**40)
    assert not fits_on_device(2**30, 4.0, 4 * 2**30 - 1)
    assert not fits_on_device(1, 0, 2**40)
