from __future__ import annotations

import numpy as np
import pytest
from helpers.windows import window_starts
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcls.data.sampling import (
    SAMPLINGS,
    frame_indices,
    select_frames,
    stored_frames,
)
from vidcls.errors import UserError

COUNTS = st.integers(1, 64)
RATES = st.sampled_from([1.0, 10.0, 24000 / 1001, 25.0, 30000 / 1001, 60.0])
# Steps from one frame to the next: never shorter than a millisecond, now and then long.
STEPS = st.lists(st.floats(0.001, 3.0, allow_nan=False), min_size=1, max_size=80)


def constant_rate(count: int, rate: float, start: float = 0.0) -> tuple[np.ndarray, float]:
    """When each of ``count`` frames appears, and when the last disappears."""
    return start + np.arange(count) / rate, start + count / rate


def chosen(count: int, num_frames: int, sampling: str = "uniform", rate: float = 1.0) -> list[int]:
    starts, end = constant_rate(count, rate)
    return frame_indices(starts, end, num_frames, sampling).tolist()


# ---- which of a video's frames


@pytest.mark.parametrize(
    ("count", "num_frames", "expected"),
    [
        (10, 4, [1, 3, 6, 8]),
        (10, 1, [5]),  # the middle, 5.0 s, is the moment at which frame 5 appears
        (9, 1, [4]),
        (9, 3, [1, 4, 7]),
        (4, 4, [0, 1, 2, 3]),
        (5, 3, [0, 2, 4]),
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (2, 5, [0, 0, 1, 1, 1]),  # middles 0.2 0.6 1.0 1.4 1.8
        (1, 3, [0, 0, 0]),
    ],
)
def test_uniform_takes_the_middles_of_equal_segments(count: int, num_frames: int, expected: list[int]) -> None:
    assert chosen(count, num_frames) == expected


@pytest.mark.parametrize(
    ("count", "num_frames", "expected"), [(10, 4, [0, 1, 2, 3]), (3, 3, [0, 1, 2]), (3, 5, [0, 1, 2, 2, 2])]
)
def test_first_takes_the_first_and_repeats_the_last(count: int, num_frames: int, expected: list[int]) -> None:
    assert chosen(count, num_frames, "first") == expected


@pytest.mark.parametrize("rate", [1.0, 10.0, 12.0, 24000 / 1001, 25.0, 29.97, 30000 / 1001, 59.94])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_a_middle_on_a_frames_start_takes_that_frame_whatever_the_rounding(rate: float, precision: type) -> None:
    """Each middle of 20 segments of 40 frames is the moment at which an odd frame appears."""
    starts, end = constant_rate(40, rate)
    rounded = starts.astype(precision).astype(np.float64)
    assert frame_indices(rounded, float(precision(end)), 20, "uniform").tolist() == list(range(1, 40, 2))


def test_time_decides_not_the_count() -> None:
    # Five quick frames in the first second, then one that stays for nine: middles 0.5 1.5 ... 9.5.
    starts = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert frame_indices(starts, 10.0, 10, "uniform").tolist() == [2, *[5] * 9]
    assert frame_indices(starts, 10.0, 3, "first").tolist() == [0, 1, 2]


def test_only_the_time_since_the_first_frame_counts() -> None:
    starts = np.array([0.0, 1.0, 4.0, 4.5])
    for shift in (-3.0, 0.0, 1000.0):
        assert frame_indices(starts + shift, 6.0 + shift, 3, "uniform").tolist() == [1, 1, 3]


def test_an_end_before_the_last_frame_is_not_believed() -> None:
    """Containers get durations wrong: the video ends when its last frame has appeared, or later."""
    starts = np.arange(10.0)
    assert frame_indices(starts, 3.0, 3, "uniform").tolist() == [1, 4, 7]  # of [0, 9)


@given(STEPS, COUNTS, st.sampled_from(SAMPLINGS))
def test_indices_ascend_within_the_video(steps: list[float], num_frames: int, sampling: str) -> None:
    times = np.cumsum([0.0, *steps])
    indices = frame_indices(times[:-1], float(times[-1]), num_frames, sampling)
    assert indices.shape == (num_frames,)
    assert (np.diff(indices) >= 0).all()
    assert indices[0] >= 0 and indices[-1] < len(steps)


@given(STEPS, COUNTS, st.floats(-100, 100))
def test_the_frame_on_screen_in_the_middle_of_each_segment_is_taken(
    steps: list[float], num_frames: int, start: float
) -> None:
    times = start + np.cumsum([0.0, *steps])
    width = (times[-1] - times[0]) / num_frames
    indices = frame_indices(times[:-1], float(times[-1]), num_frames, "uniform")
    for segment, index in enumerate(indices):
        middle = times[0] + (segment + 0.5) * width
        assert times[index] - 2e-4 <= middle < times[index + 1] + 2e-4


@given(COUNTS, RATES, COUNTS, st.floats(0, 100))
def test_at_a_constant_rate_the_spacing_is_even(count: int, rate: float, num_frames: int, start: float) -> None:
    starts, end = constant_rate(count, rate, start)
    indices = frame_indices(starts, end, num_frames, "uniform")
    assert set(np.diff(indices).tolist()) <= {count // num_frames, -(-count // num_frames)}
    # As much is left out before the first as after the last, to within the one frame that a tie is rounded up by.
    assert abs(indices[0] - (count - 1 - indices[-1])) <= 1


@given(st.integers(1, 20), COUNTS, RATES)
def test_as_many_frames_as_there_are_takes_each_once(repeats: int, count: int, rate: float) -> None:
    assert chosen(count, count, rate=rate) == list(range(count))
    assert chosen(count, count * repeats, rate=rate) == np.repeat(np.arange(count), repeats).tolist()


# ---- the windows of a long video


@pytest.mark.parametrize(
    ("seconds", "window", "stride", "expected"),
    [
        (10.0, 4.0, 2.0, [0, 2, 4, 6]),
        (10.5, 4.0, 2.0, [0, 2, 4, 6, 6.5]),
        (12.0, 4.0, 3.0, [0, 3, 6, 8]),
        (8.0, 4.0, 4.0, [0, 4]),
        (4.0, 4.0, 2.0, [0]),
        (0.0, 4.0, 2.0, [0]),
        (4.5, 4.0, 2.0, [0, 0.5]),
        (0.3, 0.1, 0.1, [0, 0.1, 0.2]),  # in floating point (0.3 - 0.1) / 0.1 is not 2
        (0.7, 0.1, 0.1, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
    ],
)
def test_window_starts(seconds: float, window: float, stride: float, expected: list[float]) -> None:
    assert window_starts(seconds, window, stride) == pytest.approx(expected)


@settings(deadline=None)
@given(st.floats(0.0, 200.0), st.floats(0.5, 60.0), st.floats(0.05, 1.0))
def test_windows_cover_the_video_and_nothing_else(seconds: float, window: float, part: float) -> None:
    stride = window * part
    starts = window_starts(seconds, window, stride)
    steps = np.diff(starts)
    assert starts[0] == 0
    assert (steps > 0).all()
    assert steps.max(initial=0) <= stride * (1 + 1e-5)  # so no gap, for the stride is at most the window
    if seconds <= window:
        assert len(starts) == 1
    else:
        assert starts[-1] + window == pytest.approx(seconds)
        assert len(starts) <= np.ceil((seconds - window) / stride) + 1
        assert np.allclose(steps[:-1], stride)


@pytest.mark.parametrize(
    ("window", "stride", "code"),
    [
        (0.0, 1.0, "predict.window_seconds"),
        (-1.0, 1.0, "predict.window_seconds"),
        (float("inf"), 1.0, "predict.window_seconds"),
        (float("nan"), 1.0, "predict.window_seconds"),
        (1.0, 0.0, "predict.stride_seconds"),
        (3.0, 3.5, "stride-longer-than-window"),
    ],
)
def test_windows_out_of_range_are_refused(window: float, stride: float, code: str) -> None:
    with pytest.raises(UserError) as error:
        window_starts(10.0, window, stride)
    assert error.value.code == code


# ---- how many to store, and which of them to use


@pytest.mark.parametrize(
    ("num_frames", "asked", "sampling", "expected"),
    [
        (20, None, "uniform", 20),
        (20, 20, "uniform", 20),
        (20, 40, "uniform", 40),
        (20, 16, "uniform", 20),
        (20, 1, "first", 20),
        (20, 33, "first", 33),
    ],
)
def test_stored_frames(num_frames: int, asked: int | None, sampling: str, expected: int) -> None:
    assert stored_frames(num_frames, asked, sampling) == expected


@given(COUNTS, st.none() | st.integers(1, 400))
def test_the_frames_used_divide_the_frames_stored(num_frames: int, asked: int | None) -> None:
    try:
        stored = stored_frames(num_frames, asked, "uniform")
    except UserError:
        assert asked is not None and asked > num_frames and asked % num_frames
    else:
        assert stored % num_frames == 0 and stored >= max(num_frames, asked or 0)


def test_a_store_that_is_no_multiple_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(UserError) as error:
        stored_frames(20, 50, "uniform")
    assert error.value.code == "data.store.num_frames" and "Use 40 or 60." in str(error.value)
    with pytest.raises(UserError) as error:
        stored_frames(20, 0, "uniform")
    assert error.value.code == "data.store.num_frames"


@pytest.mark.parametrize(
    ("stored", "num_frames", "sampling", "expected"),
    [
        (6, 2, "uniform", [1, 4]),
        (8, 2, "uniform", [2, 6]),
        (4, 2, "uniform", [1, 3]),
        (3, 3, "uniform", [0, 1, 2]),
        (6, 2, "first", [0, 1]),
        (5, 1, "uniform", [2]),
    ],
)
def test_select_frames(stored: int, num_frames: int, sampling: str, expected: list[int]) -> None:
    assert select_frames(stored, num_frames, sampling).tolist() == expected


@given(COUNTS, st.integers(1, 8))
def test_selected_frames_are_evenly_spaced_and_each_in_its_run(num_frames: int, k: int) -> None:
    indices = select_frames(num_frames * k, num_frames, "uniform")
    assert (np.diff(indices) == k).all()
    assert (indices // k).tolist() == list(range(num_frames))


@given(COUNTS, RATES, st.integers(1, 16), st.sampled_from([1, 3, 5]))
def test_every_kth_of_a_bigger_store_is_what_a_smaller_one_holds(
    count: int, rate: float, num_frames: int, k: int
) -> None:
    """With odd k the middle of k small segments is the middle of the segment that they make up."""
    selected = select_frames(num_frames * k, num_frames, "uniform")
    assert [chosen(count, num_frames * k, rate=rate)[i] for i in selected] == chosen(count, num_frames, rate=rate)


@given(COUNTS, st.integers(1, 8), st.integers(0, 2**31))
def test_jitter_stays_in_its_run_and_repeats_with_its_seed(num_frames: int, k: int, seed: int) -> None:
    indices = select_frames(num_frames * k, num_frames, "uniform", np.random.default_rng(seed))
    assert (indices // k).tolist() == list(range(num_frames))
    again = select_frames(num_frames * k, num_frames, "uniform", np.random.default_rng(seed))
    assert (indices == again).all()


def test_jitter_reaches_each_place_of_each_run_on_its_own() -> None:
    generator = np.random.default_rng(0)
    draws = np.array([select_frames(6, 2, "uniform", generator) for _ in range(200)])
    assert {tuple(draw) for draw in draws.tolist()} == {(i, j) for i in range(3) for j in range(3, 6)}
