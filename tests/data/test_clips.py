"""Several clips of a video: where they lie, what is stored and drawn, and the average of their probabilities."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.frames import EACH_DECODER, SIDE, numbered, numbers
from helpers.videos import write_video
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from vidcls.data.dataset import SampleIndex, VideoDataset
from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.plan import Window, WindowPlan, middle_clip
from vidcls.data.decoding.result import DECODERS, DecodeResult
from vidcls.data.decoding.windows import stream_windows
from vidcls.data.sampling import StoreSpec, clip_indices, clip_starts, frame_indices
from vidcls.data.store import DECODE_VERSION, FrameStore
from vidcls.training.inference import average_clips

Spec = tuple[float | None, int]  # clip_seconds, num_clips

# ---- where clips lie, and which frames they take


@pytest.mark.parametrize(
    ("seconds", "clip_seconds", "num_clips", "expected"),
    [
        (10.0, 4.0, 1, [3.0]),
        (10.0, 4.0, 2, [0.0, 6.0]),
        (10.0, 4.0, 4, [0.0, 2.0, 4.0, 6.0]),
        (10.0, 2.5, 4, [0.0, 2.5, 5.0, 7.5]),  # side by side
        (10.0, 1, 2, [0.0, 9.0]),  # with a gap
        (4.0, 4.0, 3, [0.0] * 3),
        (2.5, 4.0, 2, [0.0] * 2),
        (2.5, 4.0, 1, [0.0]),
    ],
)
def test_where_clips_start(seconds: float, clip_seconds: float, num_clips: int, expected: list[float]) -> None:
    assert clip_starts(seconds, clip_seconds, num_clips).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("clips", "num_frames", "sampling", "expected"),
    [
        ((4.0, 1), 2, "uniform", [4, 6]),  # of [3, 7)
        ((4.0, 3), 2, "uniform", [1, 3, 4, 6, 7, 9]),
        ((8.0, 3), 2, "uniform", [2, 6, 3, 7, 4, 8]),  # overlapping: back and forth
        ((4.0, 2), 3, "first", [0, 1, 2, 6, 7, 8]),
        ((2.0, 2), 3, "first", [0, 1, 1, 8, 9, 9]),  # a clip has no more: its last one again
        ((20.0, 2), 2, "uniform", [2, 7] * 2),  # a video shorter than a clip
        ((0.5, 2), 2, "uniform", [0, 0, 9, 9]),  # a clip shorter than a frame
    ],
)
def test_frames_of_clips_by_hand(clips: Spec, num_frames: int, sampling: str, expected: list[int]) -> None:
    """Ten frames, one a second, which are shown from second 5 on."""
    timestamps = 5.0 + np.arange(10.0)
    assert clip_indices(timestamps, 15.0, StoreSpec(num_frames, 64, sampling, *clips)).tolist() == expected


def test_time_decides_and_not_the_count() -> None:
    timestamps = np.array([0.0, 1.0, 2.0, 9.0])  # frame 2 stays for 7 seconds
    assert clip_indices(timestamps, 10.0, StoreSpec(2, 64, "uniform", 4.0, 2)).tolist() == [
        1,
        2,
        2,
        3,
    ]  # at 1, 3, 7 and 9


@given(
    steps=st.lists(st.floats(0.01, 2.0), min_size=1, max_size=40),
    num_frames=st.integers(1, 9),
    sampling=st.sampled_from(["uniform", "first"]),
    count=st.integers(1, 5),
    seconds=st.floats(0.1, 90.0),
)
def test_frames_of_any_clips(steps: list[float], num_frames: int, sampling: str, count: int, seconds: float) -> None:
    timestamps = np.cumsum([3.0, *steps[:-1]])
    end = float(timestamps[-1]) + steps[-1]
    whole = frame_indices(timestamps, end, num_frames, sampling)
    assert clip_indices(timestamps, end, StoreSpec(num_frames, 64, sampling)).tolist() == whole.tolist()
    indices = clip_indices(timestamps, end, StoreSpec(num_frames, 64, sampling, seconds, count)).reshape(
        count, num_frames
    )
    assert indices.min() >= 0 and indices.max() < len(timestamps)
    assert bool((np.diff(indices, axis=1) >= 0).all()) and bool((np.diff(indices, axis=0) >= 0).all())
    if seconds >= end - 3.0:
        assert indices.tolist() == [whole.tolist()] * count


# ---- decoding


@EACH_DECODER
@pytest.mark.parametrize(
    ("clips", "sampling", "expected"),
    [
        ((0.8, 3), "uniform", [[2, 7, 12, 17], [12, 17, 22, 27], [22, 27, 32, 37]]),
        ((0.8, 3), "first", [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]),
        ((1.2, 2), "uniform", [[3, 11, 18, 26], [13, 21, 28, 36]]),  # back from 26 to 13
        ((0.8, 1), "uniform", [[12, 17, 22, 27]]),
        ((5, 1), "uniform", [[5, 15, 25, 35]]),
        ((5, 2), "uniform", [[5, 15, 25, 35]] * 2),
    ],
)
def test_each_decoder_gives_the_frames_of_all_clips(
    tmp_path: Path, decoder: str, clips: Spec, sampling: str, expected: list[list[int]]
) -> None:
    """40 frames at 25 per second: 1.6 s."""
    path = write_video(tmp_path / "a.mp4", numbered(40))
    frames, result = decode(path, StoreSpec(4, SIDE, sampling, *clips), (decoder,))
    assert np.reshape(numbers(frames), (-1, 4)).tolist() == expected
    assert result == DecodeResult("ok", "", decoder, 1.6, 1.0)


def test_coverage_is_of_all_frames_asked_for(tmp_path: Path) -> None:
    """Damage that lies in two clips counts in both."""
    path = write_video(tmp_path / "a.mkv", numbered(40), options={"g": "10", "bf": "0", "preset": "ultrafast"})
    content = path.read_bytes()
    start = len(content) // 2
    path.write_bytes(content[:start] + bytes(len(content) // 20) + content[start + len(content) // 20 :])
    whole = decode(path, StoreSpec(40, SIDE), ("pyav",))[1]
    twice = decode(path, StoreSpec(40, SIDE, "uniform", 1.6, 2), ("pyav",))[1]
    assert whole.status == "partial" and 0 < whole.coverage < 1
    assert twice.coverage == whole.coverage
    lost = round((1 - whole.coverage) * 40)
    if f"{lost} of 40 frames" in whole.reason:
        assert f"{2 * lost} of 80 frames" in twice.reason


def test_a_short_video_comes_with_all_clips_and_a_window_of_a_long_one_is_one(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(40))
    plan = WindowPlan(StoreSpec(4, SIDE, "uniform", 0.8, 3), 0.8, 0.4, max_whole_seconds=2.0)
    (whole,) = stream_windows(path, plan, DECODERS)
    expected, _ = decode(path, plan.spec, DECODERS)
    assert whole.frames.tobytes() == expected.tobytes() and (whole.start_seconds, whole.end_seconds) == (0.0, 1.6)
    windows = list(stream_windows(path, WindowPlan(plan.spec, 0.8, 0.4, 1.0), DECODERS))
    assert [numbers(window.frames) for window in windows] == np.reshape(numbers(expected), (3, 4)).tolist()
    single = StoreSpec(4, SIDE, "uniform", 0.8, 1)  # of a whole video its middle alone
    (window,) = stream_windows(path, WindowPlan(single, 2.0, 1.0, 1.0), DECODERS)
    assert numbers(window.frames) == [5, 15, 25, 35]


@pytest.mark.parametrize(
    ("clips", "start", "end", "first"),
    [
        ((2.0, 2), 8.0, 10.0, 4),  # of [0, 2) and [8, 10)
        ((2.0, 3), 4.0, 6.0, 4),
        ((20.0, 2), 0.0, 10.0, 4),
        ((2.0, 1), 0.0, 10.0, 0),
        ((None, 1), 0.0, 10.0, 0),
    ],
)
def test_the_middle_clip_has_its_own_time(clips: Spec, start: float, end: float, first: int) -> None:
    """What a picture of a video is said to show must be there."""
    frames = np.arange(4 * clips[1], dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    plan = WindowPlan(StoreSpec(4, 2, "uniform", *clips), 2.0, 1.0, 20.0)
    clip = middle_clip(Window(0.0, 10.0, frames, 1.0), plan)
    assert (clip.start_seconds, clip.end_seconds, clip.frames[:, 0, 0, 0].tolist()) == (
        start,
        end,
        list(range(first, first + 4)),
    )


# ---- the store and the dataset

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    """One video of three clips with six frames each; frame f of clip m has the value 10 m + f everywhere."""
    store = FrameStore(tmp_path, StoreSpec(6, 4, "uniform", 2.0, 3))
    values = (10 * np.arange(3)[:, None] + np.arange(6)).astype(np.uint8).ravel()
    frames = np.ascontiguousarray(np.broadcast_to(values[:, None, None, None], (18, 4, 4, 3)))
    store.write(KEY, frames, DecodeResult("ok", "", "decord", 9.0, 1.0))
    return store


def videos(store: FrameStore, *, num_frames: int = 2, jitter: bool = False, all_clips: bool = False) -> VideoDataset:
    return VideoDataset(store, [KEY], [1], num_frames, jitter, all_clips)


def test_folders_of_the_store(tmp_path: Path) -> None:
    names = [FrameStore(tmp_path, StoreSpec(6, 4, "uniform", *clips)).folder.name for clips in ((), (2, 3), (1.25,))]
    starts = [f"uniform_6x4px{clips}_v{DECODE_VERSION}" for clips in ("", "_3x2.0s", "_1x1.25s")]
    assert [name.partition("_decord")[0] for name in names] == starts
    assert FrameStore(tmp_path, StoreSpec(6, 4)).folder.name == names[0]


def test_an_entry_holds_all_clips(store: FrameStore, tmp_path: Path) -> None:
    assert store.find(KEY) == DecodeResult("ok", "", "decord", 9.0, 1.0)
    assert store.read(KEY, np.array([17, 3]))[:, 0, 0, 0].tolist() == [25, 3]
    fewer = FrameStore(tmp_path, StoreSpec(6, 4, "uniform", 2.0, 2))
    fewer.path(KEY).parent.mkdir(parents=True)
    shutil.copy(store.path(KEY), fewer.path(KEY))
    assert fewer.find(KEY) is None  # an entry of another shape
    content = bytearray(store.path(KEY).read_bytes())
    content[-1] ^= 1  # within the frames, the last of what a file holds
    store.path(KEY).write_bytes(content)
    assert store.find(KEY) is None


def test_evaluation_reads_all_clips(store: FrameStore) -> None:
    item = videos(store, all_clips=True)[SampleIndex(0, seed=1)]
    assert item.frames.shape == (3, 2, 4, 4, 3)
    assert item.frames[..., 0, 0, 0].tolist() == [[1, 4], [11, 14], [21, 24]]
    assert videos(store).frames(0)[:, 0, 0, 0].tolist() == [11, 14]  # the middle one, for pictures


def test_training_draws_a_clip_by_the_seed_alone(store: FrameStore) -> None:
    drawn = [videos(store)[SampleIndex(0, seed)].frames[:, 0, 0, 0].tolist() for seed in range(300)]
    assert drawn == [videos(store)[SampleIndex(0, seed)].frames[:, 0, 0, 0].tolist() for seed in range(300)]
    counts = [drawn.count(clip) for clip in ([1, 4], [11, 14], [21, 24])]
    assert sum(counts) == 300 and min(counts) > 70


def test_jitter_stays_in_the_clip_drawn(store: FrameStore) -> None:
    drawn = {tuple(videos(store, jitter=True)[SampleIndex(0, seed)].frames[:, 0, 0, 0].tolist()) for seed in range(500)}
    assert drawn == {(10 * m + a, 10 * m + b) for m in range(3) for a in range(3) for b in range(3, 6)}


# ---- one probability out of many


def test_the_mean_of_probabilities_by_hand() -> None:
    p = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]])
    torch.testing.assert_close(average_clips(p.log()), torch.tensor([[0.4, 0.6]]))


def test_of_one_clip_it_is_its_own_to_the_bit() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 30
    assert torch.equal(average_clips(logits[:, None]), logits.softmax(dim=1))
    log_p = logits[:, None].log_softmax(dim=2).logsumexp(dim=1) - math.log(1)
    labels = torch.arange(7) % 5
    assert torch.equal(F.nll_loss(log_p, labels), F.cross_entropy(logits, labels))
