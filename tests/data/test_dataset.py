from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vidcls.data.dataset import SampleIndex, VideoBatch, VideoDataset, VideoSampler
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore, StoreEntryError
from vidcls.errors import UserError

LENGTHS, WORLDS, SEEDS = st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**31)
VIDEOS, STORED, USED, SIDE = 7, 12, 4, 8


def shares(
    length: int, world_size: int, *, shuffle: bool, seed: int = 0, epoch: int = 0, balance: list[int] | None = None
) -> list[list[SampleIndex]]:
    """What each device is asked to read in one epoch."""
    samplers = [
        VideoSampler(length=length, shuffle=shuffle, seed=seed, rank=r, world_size=world_size, balance=balance)
        for r in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    drawn = [list(sampler) for sampler in samplers]
    assert [len(draws) for draws in drawn] == [len(sampler) for sampler in samplers]
    return drawn


def rows(draws: list[SampleIndex]) -> list[int]:
    return [draw.index for draw in draws]


# ---- the sampler


@given(LENGTHS, WORLDS, SEEDS, st.integers(0, 100))
def test_in_order_each_video_is_in_exactly_one_share(length: int, world_size: int, seed: int, epoch: int) -> None:
    parts = shares(length, world_size, shuffle=False, seed=seed, epoch=epoch)
    assert all(rows(part) == sorted(rows(part)) for part in parts)
    if world_size > length:  # no share is empty
        assert [rows(part) for part in parts] == [[row if row < length else 0] for row in range(world_size)]
        return
    assert sorted(row for part in parts for row in rows(part)) == list(range(length))
    # Round by round the devices' batches are the file order.
    rounds = [part[i].index for i in range(len(parts[0])) for part in parts if i < len(part)]
    assert rounds == list(range(length))


@given(LENGTHS, WORLDS, SEEDS, st.integers(0, 100))
def test_shuffled_the_shares_are_equally_long_and_hold_every_video(
    length: int, world_size: int, seed: int, epoch: int
) -> None:
    parts = shares(length, world_size, shuffle=True, seed=seed, epoch=epoch)
    size = -(-length // world_size)
    assert [len(part) for part in parts] == [size] * world_size
    drawn = [row for part in parts for row in rows(part)]
    assert set(drawn) == set(range(length))
    if length >= world_size:  # only the last round is filled up, each filling video being there once more
        assert max(drawn.count(row) for row in drawn) <= 2
    assert len(drawn) - length < world_size


@given(st.integers(2, 60), SEEDS, st.integers(0, 100))
def test_an_order_is_a_function_of_seed_and_epoch(length: int, seed: int, epoch: int) -> None:
    first, again = (shares(length, 1, shuffle=True, seed=seed, epoch=epoch) for _ in range(2))
    assert first == again


def test_another_epoch_or_seed_is_another_order() -> None:
    orders = [
        tuple(rows(shares(50, 1, shuffle=True, seed=seed, epoch=epoch)[0])) for seed in range(3) for epoch in range(4)
    ]
    assert len(set(orders)) == len(orders)
    assert all(order != tuple(range(50)) for order in orders)


def test_going_on_after_a_resume_gives_the_order_of_that_epoch() -> None:
    straight = VideoSampler(length=20, shuffle=True, seed=3, rank=0, world_size=1)
    for epoch in range(3):
        straight.set_epoch(epoch)
        list(straight)
    straight.set_epoch(3)
    resumed = VideoSampler(length=20, shuffle=True, seed=3, rank=0, world_size=1)
    resumed.set_epoch(3)
    assert list(straight) == list(resumed)


def test_a_videos_seed_is_its_own_and_does_not_depend_on_the_devices() -> None:
    one = {draw.index: draw.seed for draw in shares(24, 1, shuffle=True, epoch=2)[0]}
    for part in shares(24, 3, shuffle=True, epoch=2):
        assert all(one[draw.index] == draw.seed for draw in part)
    assert len(set(one.values())) == 24
    other = {draw.index: draw.seed for draw in shares(24, 1, shuffle=True, epoch=3)[0]}
    assert all(one[row] != other[row] for row in one)


def test_every_place_in_the_order_is_reached_alike() -> None:
    """600 epochs of 6 videos: each is first about 100 times (standard deviation 9)."""
    firsts = [rows(shares(6, 1, shuffle=True, epoch=epoch)[0])[0] for epoch in range(600)]
    assert all(60 < firsts.count(row) < 140 for row in range(6))


def test_a_plain_epoch_written_out() -> None:
    """The draws that runs so far have been trained with."""
    generator = np.random.default_rng([3, 4])
    seeds, order = generator.integers(2**31, size=9), np.arange(9)
    generator.shuffle(order)
    assert shares(9, 1, shuffle=True, seed=3, epoch=4)[0] == [SampleIndex(int(row), int(seeds[row])) for row in order]


# ---- balanced

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def balanced(labels: list[int], world_size: int = 1, seed: int = 0, epoch: int = 0) -> list[list[SampleIndex]]:
    return shares(len(labels), world_size, shuffle=True, seed=seed, epoch=epoch, balance=labels)


@given(LABELS, SEEDS, st.integers(0, 100))
def test_balanced_each_class_has_an_equal_share(labels: list[int], seed: int, epoch: int) -> None:
    drawn = rows(balanced(labels, seed=seed, epoch=epoch)[0])
    assert len(drawn) == len(labels)
    of_class = [sum(labels[row] == label for row in drawn) for label in set(labels)]
    assert sum(of_class) == len(drawn) and max(of_class) - min(of_class) <= 1
    for label in set(labels):  # and within it, each video
        times = [drawn.count(row) for row in range(len(labels)) if labels[row] == label]
        assert max(times) - min(times) <= 2  # the end of one round and the start of the next but one, in one epoch
    again = rows(balanced(labels, seed=seed, epoch=epoch)[0])
    assert drawn == again


@given(LABELS, SEEDS, st.integers(1, 12))
def test_balanced_the_videos_of_a_class_take_turns_over_the_epochs(labels: list[int], seed: int, epochs: int) -> None:
    drawn = [row for epoch in range(epochs) for row in rows(balanced(labels, seed=seed, epoch=epoch)[0])]
    of_class = [sum(labels[row] == label for row in drawn) for label in set(labels)]
    assert max(of_class) - min(of_class) <= 1
    for label in set(labels):
        times = [drawn.count(row) for row in range(len(labels)) if labels[row] == label]
        assert max(times) - min(times) <= 1


@given(LABELS, st.integers(2, 5), SEEDS, st.integers(0, 100))
def test_balanced_the_devices_share_one_order(labels: list[int], world_size: int, seed: int, epoch: int) -> None:
    whole = balanced(labels, seed=seed, epoch=epoch)[0]
    parts = balanced(labels, world_size, seed=seed, epoch=epoch)
    dealt = [part[place] for place in range(len(parts[0])) for part in parts]
    assert dealt[: len(whole)] == whole
    filled = dealt[len(whole) :]  # with the first ones again, as without balance
    assert len(filled) < world_size and filled == (whole * world_size)[: len(filled)]


def test_balanced_a_small_class_comes_again_and_is_read_anew() -> None:
    """Of nine draws, four or five are the one video's, each with a seed of its own for the jitter."""
    draws = [draw for draw in balanced([0] * 8 + [1])[0] if draw.index == 8]
    assert len(draws) in (4, 5) and len({draw.seed for draw in draws}) == len(draws)


def test_balanced_another_epoch_or_seed_is_another_order() -> None:
    labels = [0] * 30 + [1] * 20
    orders = [tuple(rows(balanced(labels, seed=seed, epoch=epoch)[0])) for seed in range(3) for epoch in range(4)]
    assert len(set(orders)) == len(orders)
    rounds = [tuple(row for row in order if row >= 30) for order in orders[:4]]  # of the smaller class: 25 draws each
    assert len({part[:20] for part in rounds}) == 4


# ---- the dataset


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """Videos of which frame f of video v has the value 20 v + f everywhere."""
    store = FrameStore(tmp_path_factory.mktemp("store"), StoreSpec(STORED, SIDE))
    for video in range(VIDEOS):
        values = (20 * video + np.arange(STORED)).astype(np.uint8)
        frames = np.broadcast_to(values[:, None, None, None], (STORED, SIDE, SIDE, 3))
        store.write(key(video), np.ascontiguousarray(frames), DecodeResult("ok", "", "decord", 1.0, 1.0))
    return store


def key(video: int) -> str:
    return f"{video:064x}"


def dataset(store: FrameStore, *, jitter: bool = False, num_frames: int = USED) -> VideoDataset:
    labels = [video % 3 for video in range(VIDEOS)]
    return VideoDataset(store, [key(video) for video in range(VIDEOS)], labels, num_frames, jitter)


def stored_frames_of(clip: VideoBatch) -> list[int]:
    values = clip.frames[:, 0, 0, 0].tolist()
    assert (clip.frames == clip.frames[:, :1, :1, :1]).all()
    return [value - 20 * int(clip.index) for value in values]


def test_a_clip(store: FrameStore) -> None:
    videos = dataset(store)
    assert len(videos) == VIDEOS
    clip = videos[SampleIndex(5, seed=1)]
    assert isinstance(clip, VideoBatch)
    assert (clip.frames.dtype, clip.label.dtype, clip.index.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert tuple(clip.frames.shape) == (USED, SIDE, SIDE, 3)
    assert (int(clip.label), int(clip.index)) == (2, 5)
    assert stored_frames_of(clip) == [1, 4, 7, 10]  # the middle ones of four runs of three
    np.testing.assert_array_equal(videos.frames(5), clip.frames.numpy())


def test_without_jitter_the_seed_does_not_matter(store: FrameStore) -> None:
    videos = dataset(store)
    assert torch.equal(videos[SampleIndex(3, seed=1)].frames, videos[SampleIndex(3, seed=2)].frames)


def test_with_jitter_each_frame_stays_in_its_run_and_the_seed_decides(store: FrameStore) -> None:
    videos = dataset(store, jitter=True)
    drawn = [stored_frames_of(videos[SampleIndex(2, seed=seed)]) for seed in range(60)]
    assert all([frame // 3 for frame in frames] == [0, 1, 2, 3] for frames in drawn)
    assert drawn == [stored_frames_of(videos[SampleIndex(2, seed=seed)]) for seed in range(60)]
    for place in range(USED):
        assert {frames[place] % 3 for frames in drawn} == {0, 1, 2}


def test_a_store_with_just_the_frames_used_leaves_no_room_for_jitter(store: FrameStore) -> None:
    clip = dataset(store, jitter=True, num_frames=STORED)[SampleIndex(0, seed=1)]
    assert stored_frames_of(clip) == list(range(STORED))


def test_a_missing_entry_is_never_replaced_by_another(store: FrameStore) -> None:
    videos = VideoDataset(store, [key(0), "f" * 64], [0, 1], USED, False)
    with pytest.raises(StoreEntryError, match="f" * 64):
        videos[SampleIndex(1, seed=0)]


# ---- both behind a loader


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_entry_that_vanishes_ends_with_one_line(store: FrameStore, num_workers: int) -> None:
    """Also where a worker process of the loader has missed it."""
    videos = VideoDataset(store, [key(0), "f" * 64], [0, 1], USED, False)
    with pytest.raises(UserError) as error:
        list(DataLoader(videos, num_workers=num_workers))
    assert error.value.code == "store-entry" and "f" * 64 in str(error.value) and "\n" not in str(error.value)


def epoch_of(store: FrameStore, epoch: int, num_workers: int) -> list[VideoBatch]:
    sampler = VideoSampler(length=VIDEOS, shuffle=True, seed=0, rank=0, world_size=1)
    sampler.set_epoch(epoch)
    return list(DataLoader(dataset(store, jitter=True), batch_size=3, sampler=sampler, num_workers=num_workers))


def test_batches_do_not_depend_on_the_number_of_workers(store: FrameStore) -> None:
    alone, helped = epoch_of(store, 4, 0), epoch_of(store, 4, 2)
    assert [tuple(batch.frames.shape) for batch in alone] == [(3, USED, SIDE, SIDE, 3)] * 2 + [(1, USED, SIDE, SIDE, 3)]
    for one, other in zip(alone, helped, strict=True):
        assert isinstance(other, VideoBatch)
        assert (other.frames.dtype, other.label.dtype, other.index.dtype) == (torch.uint8, torch.int64, torch.int64)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert sorted(torch.cat([batch.index for batch in alone]).tolist()) == list(range(VIDEOS))
    assert all((batch.label == batch.index % 3).all() for batch in alone)


def test_epochs_draw_other_frames_and_repeat_exactly(store: FrameStore) -> None:
    def frames_used(epoch: int) -> dict[int, list[int]]:
        batches = epoch_of(store, epoch, 0)
        return {
            int(row): stored_frames_of(VideoBatch(frames, label, row))
            for batch in batches
            for frames, label, row in zip(*batch, strict=True)
        }

    used = [frames_used(epoch) for epoch in range(3)]
    assert used == [frames_used(epoch) for epoch in range(3)]
    assert used[0] != used[1] != used[2] != used[0]
