from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.frames import SIDE, moving, numbered, numbers, spans, stream
from helpers.videos import ffmpeg, write_video
from helpers.windows import window_starts
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.result import DECODERS
from vidcls.data.decoding.windows import stream_windows
from vidcls.data.sampling import StoreSpec, frame_indices, window_indices
from vidcls.errors import UserError

# ---- which frames


def test_each_window_holds_its_own_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(40), fps=10, options={"crf": "0", "bf": "3", "g": "12"})
    video = stream(path, 2, 1.0, 1.0)
    assert (len(video), video.seconds, video.result) == (4, 4.0, None)
    windows = list(video)
    assert spans(windows) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [numbers(window.frames) for window in windows] == [[2, 7], [12, 17], [22, 27], [32, 37]]
    assert [window.coverage for window in windows] == [1.0] * 4
    result = video.result
    assert result is not None
    assert (result.status, result.reason, result.decoder, result.coverage) == ("ok", "", "pyav", 1.0)
    assert result.seconds == 4.0


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("uniform", [[2, 7, 12], [7, 12, 17], [12, 17, 22], [17, 22, 27], [22, 27, 32], [27, 32, 37]]),
        ("first", [[i, i + 1, i + 2] for i in range(0, 30, 5)]),
    ],
)
def test_windows_overlap(tmp_path: Path, sampling: str, expected: list[list[int]]) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(40), fps=10)
    windows = list(stream(path, 3, 1.5, 0.5, sampling))
    assert [numbers(window.frames) for window in windows] == expected


def test_the_last_window_is_moved_back_to_the_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(33), fps=10)
    windows = list(stream(path, 2, 2.0, 1.0))
    assert spans(windows) == [(0, 2), (1, 3), (1.3, 3.3)]
    assert [numbers(window.frames) for window in windows] == [[5, 15], [15, 25], [18, 28]]


@pytest.mark.parametrize("late", [0, 500])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_frame_rate_is_sampled_by_time(tmp_path: Path, suffix: str, late: int) -> None:
    times = [0, 100, 200, 1900, 2000, 3900]  # milliseconds; the last frame ends at 4000
    path = write_video(tmp_path / f"v.{suffix}", numbered(6), pts=[late + time for time in times], fps=10)
    windows = list(stream(path, 4, 1.0, 1.0))
    assert spans(windows) == [(0, 1), (1, 2), (2, 3), (3, 4)]  # from the first frame, late as it may come
    # 125 375 ...: then frame 2 stays on screen, all through the second window's first half and beyond
    assert [numbers(window.frames) for window in windows] == [[1, 2, 2, 2], [2] * 4, [4] * 4, [4] * 4]
    assert [numbers(window.frames) for window in stream(path, 3, 1.0, 1.0, "first")] == [
        [0, 1, 2],
        [2, 3, 3],
        [4] * 3,
        [4, 5, 5],
    ]


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {"crf": "20", "bf": "3", "b-pyramid": "normal", "g": "30"}),
        ("mkv", "libx264", {"crf": "20", "bf": "2", "g": "15", "x264-params": "open-gop=1"}),
        ("ts", "libx264", {"crf": "20", "bf": "3"}),
        ("mp4", "libx264", {"crf": "20", "bf": "3", "x264-params": "tff=1"}),  # interlaced
        ("mp4", "libx265", {"crf": "20", "x265-params": "bframes=3:log-level=none:pools=1"}),
        ("webm", "libvpx-vp9", {"crf": "20", "cpu-used": "8"}),
        ("mp4", "mpeg4", {"qmin": "2", "qmax": "4", "bf": "2"}),
        ("avi", "libx264", {"crf": "20", "bf": "3"}),  # without a clock of its own
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_window_equals_what_a_full_decode_shows_then(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], threads: int
) -> None:
    """Also where the decoder leaves out frames that no window asks for; each frame is decoded at most once."""
    count = 120
    path = write_video(tmp_path / f"a.{suffix}", moving(count), fps=20, codec=codec, options=options)
    everything, _ = decode(path, StoreSpec(count, SIDE, "first"), ("pyav",))
    for num_frames, window, stride in [(4, 1.5, 0.4), (3, 2.0, 2.0)]:
        video = stream(path, num_frames, window, stride, threads=threads)
        starts = window_starts(video.seconds, window, stride)
        assert video.starts.tolist() == starts.tolist()
        for one, start in zip(video, starts, strict=True):
            expected = window_indices(np.arange(count) / 20, start, start + window, num_frames, "uniform")
            assert np.array_equal(one.frames, everything[expected])
            assert one.coverage == 1.0
        assert video.result is not None and video.result.status == "ok", video.result
        assert 0 < video.frames_decoded <= count
        if codec == "libx264" and suffix != "avi":
            assert video.frames_decoded < 0.9 * count


@pytest.mark.parametrize("degrees, mirrored", [(0, False), (90, False), (270, False), (0, True), (90, True)])
def test_rotated_and_mirrored_videos_come_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = write_video(tmp_path / "turned.mp4", moving(20), fps=10, rotation=degrees, mirrored=mirrored)
    expected, _ = decode(path, StoreSpec(20, SIDE, "first"), ("pyav",))
    windows = list(stream(path, 5, 1.0, 0.5))
    assert np.array_equal(windows[1].frames, expected[[6, 8, 10, 12, 14]])


STEPS = st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60)


@settings(deadline=None)
@given(STEPS, st.floats(0.1, 5.0), st.integers(1, 20), st.sampled_from(["uniform", "first"]), st.floats(0, 100))
def test_a_window_is_sampled_like_a_video_of_its_own(
    steps: list[float], window: float, num_frames: int, sampling: str, origin: float
) -> None:
    timestamps = origin + np.concatenate([[0.0], np.cumsum(steps)[:-1]])
    end = origin + sum(steps)
    for first in range(0, len(steps), 7):  # a window that starts with a frame
        start, stop = timestamps[first], min(timestamps[first] + window, end)
        inside = (timestamps >= start) & (timestamps < stop - 1e-4)
        inside[first] = True
        expected = first + frame_indices(timestamps[inside], stop, num_frames, sampling)
        assert window_indices(timestamps, start, stop, num_frames, sampling).tolist() == expected.tolist()
    whole = window_indices(timestamps, origin, end, num_frames, sampling)
    assert whole.tolist() == frame_indices(timestamps, end, num_frames, sampling).tolist()


@settings(deadline=None)
@given(STEPS, st.floats(0.1, 5.0), st.floats(0.1, 1.0), st.integers(1, 8), st.sampled_from(["uniform", "first"]))
def test_windows_ask_for_frames_in_order(
    steps: list[float], window: float, part: float, num_frames: int, sampling: str
) -> None:
    """Which is why one pass is enough: neither the first nor the last frame of a window goes back in time."""
    timestamps, end = np.concatenate([[0.0], np.cumsum(steps)[:-1]]), float(np.sum(steps))
    plan = np.stack(
        [
            window_indices(timestamps, start, min(start + window, end), num_frames, sampling)
            for start in window_starts(end, window, window * part)
        ]
    )
    assert (np.diff(plan, axis=1) >= 0).all()
    assert (np.diff(plan, axis=0)[:, [0, -1]] >= 0).all()
    assert plan.min() >= 0 and plan.max() < len(steps)


@settings(deadline=None)
@given(STEPS, st.floats(0.1, 5.0), st.floats(0.2, 1.0), st.integers(1, 8), st.integers(1, 30))
def test_windows_that_would_show_an_earlier_picture_again_are_left_out(
    steps: list[float], window: float, part: float, num_frames: int, max_windows: int
) -> None:
    timestamps, end = np.concatenate([[0.0], np.cumsum(steps)[:-1]]), float(np.sum(steps))
    plan = WindowPlan(StoreSpec(num_frames, SIDE), window, window * part, 0.0, max_windows=10**6)
    chosen, total = plan.choose_windows(timestamps, end)
    everything = window_starts(end, window, window * part)
    assert total is None and np.isin(chosen, everything).all() and chosen[0] == 0
    before: set[int] = set()
    for start in everything:
        shown = window_indices(timestamps, start, min(start + window, end), num_frames, "uniform")
        if start in chosen:
            before.update(shown.tolist())
        else:
            assert len(set(shown)) == 1 and shown[0] in before
    fewer, total = replace(plan, max_windows=max_windows).choose_windows(timestamps, end)
    assert len(fewer) == min(max_windows, len(chosen)) and np.isin(fewer, chosen).all()
    assert (np.diff(fewer) > 0).all()
    assert total in (None, len(chosen)) and (len(fewer) < len(chosen) or total is None)


@pytest.mark.parametrize(("last", "windows"), [(4_100, 5), (11_465_000, 6)])
def test_windows_exist_where_frames_exist(tmp_path: Path, last: int, windows: int) -> None:
    """A last packet hours after the others brings a window or two, not thousands of one picture."""
    path = write_video(tmp_path / "late.mkv", numbered(40), pts=[*range(0, 3900, 100), last], fps=10)
    video = stream(path, 2, 1.0, 1.0)
    assert len(video) == windows == len(list(video))
    assert video.result is not None and video.result.status == "ok"


def test_a_video_of_too_many_windows_is_partial(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", numbered(40), fps=1)
    plan = WindowPlan(StoreSpec(2, SIDE), 2.0, 1.0, 0.0, max_windows=10)
    video = stream_windows(path, plan, DECODERS)
    assert [window.start_seconds for window in video] == [round(38 * i / 9) for i in range(10)]
    result = video.result
    assert result is not None and (result.status, result.coverage) == ("partial", 10 / 39)
    assert result.reason == "10 of 39 windows are read (predict.max_windows)"
    half = stream_windows(path, replace(plan, max_windows=20), DECODERS)  # which still see the whole video
    list(half)
    assert len(half) == 20 and half.result is not None and half.result.status == "ok"


def test_a_picture_that_stays_counts_by_its_time() -> None:
    """From second 2 to 62: one window of its own, which must not be left out as if it were a second."""
    appearances = np.concatenate([np.arange(0, 2, 0.04), [2.0], np.arange(62, 68, 0.04)])
    plan = WindowPlan(StoreSpec(4, SIDE), 2.0, 1.0, 0.0)
    starts, total = plan.choose_windows(appearances, 68.0)
    assert (starts.tolist(), total) == ([0, 1, 2, *range(61, 67)], None)
    starts, total = replace(plan, coarse_stride_seconds=20.0).choose_windows(appearances, 68.0)
    assert (starts.tolist(), total) == ([0, 2, 66], None)
    assert replace(plan, max_windows=6).choose_windows(appearances, 68.0)[1] is None
    starts, total = replace(plan, max_windows=4).choose_windows(appearances, 68.0)
    assert (starts.tolist(), total) == ([0, 61, 63, 66], 9)


# ---- short videos


@pytest.mark.parametrize("sampling", ["uniform", "first"])
@pytest.mark.parametrize(("window", "whole"), [(2.0, 0.0), (2.5, 1.0), (1.0, 2.0), (0.5, 3.0)])
def test_a_short_video_is_read_exactly_as_for_training(
    tmp_path: Path, sampling: str, window: float, whole: float
) -> None:
    path = write_video(tmp_path / "short.mp4", moving(40), fps=20, options={"crf": "20"})
    for decoders in (DECODERS, ("pyav",)):
        frames, result = decode(path, StoreSpec(7, SIDE, sampling), decoders)
        video = stream_windows(path, WindowPlan(StoreSpec(7, SIDE, sampling), window, 0.5, whole), decoders)
        assert len(video) == 1
        (one,) = video
        assert one.frames.tobytes() == frames.tobytes()
        assert (one.start_seconds, one.end_seconds, one.coverage) == (0.0, result.seconds, 1.0)
        assert video.result == result
        assert video.result is not None and video.result.decoder == decoders[0]


def test_a_video_longer_than_what_is_read_whole_comes_in_windows(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(40), fps=10)
    windows = list(stream_windows(path, WindowPlan(StoreSpec(2, SIDE), 1.0, 1.0, 3.9), DECODERS))
    assert [numbers(window.frames) for window in windows] == [[2, 7], [12, 17], [22, 27], [32, 37]]


def test_a_video_of_one_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", numbered(1))
    (one,) = stream(path, 3, 1.0, 1.0)
    assert numbers(one.frames) == [0, 0, 0]


@pytest.mark.parametrize("name", ["av1.mkv", "h265_10bit.mp4", "rotated_90.mov"])
def test_real_files_in_windows_equal_their_full_decode(real_data: Path, name: str) -> None:
    path = real_data / "hard" / name
    with av.open(str(path)) as container:
        shown = sorted(
            float(packet.pts * packet.time_base)
            for packet in container.demux(video=0)
            if packet.size and packet.pts is not None
        )
    everything, _ = decode(path, StoreSpec(len(shown), SIDE, "first"), ("pyav",))
    length = (shown[-1] - shown[0]) / 3
    video = stream(path, 4, length, length / 2)
    assert len(video) > 4
    for window in video:
        expected = window_indices(np.array(shown) - shown[0], window.start_seconds, window.end_seconds, 4, "uniform")
        assert np.array_equal(window.frames, everything[expected])
    assert video.result is not None and video.result.status == "ok"


# ---- what it costs


@pytest.mark.parametrize("threads", [1, 2])
def test_stderr_is_as_before_and_no_file_stays_open(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], threads: int
) -> None:
    content = bytearray(clip.read_bytes())
    start = content.index(b"mdat") + 5000
    content[start : start + 3000] = bytes(3000)
    (tmp_path / "damaged.mp4").write_bytes(content)
    status, open_files = os.fstat(2), len(os.listdir("/proc/self/fd"))
    video = stream(tmp_path / "damaged.mp4", 4, 1.0, 1.0, threads=threads)
    for _ in video:
        pass
    assert video.result is not None and "FFmpeg reports: " in video.result.reason
    windows = iter(video)
    next(windows)
    del windows  # before its end
    assert os.path.samestat(os.fstat(2), status)
    assert len(os.listdir("/proc/self/fd")) == open_files
    os.write(2, b"still heard")
    assert capfd.readouterr().err == "still heard"


def test_it_can_be_read_again(clip: Path) -> None:
    video = stream(clip, 4, 1.0, 1.0)
    first, second = ([window.frames.tobytes() for window in video] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"window_seconds": 0.0}, "predict.window_seconds"),
        ({"stride_seconds": 1.5}, "stride-longer-than-window"),
        ({"max_whole_seconds": -1.0}, "predict.max_whole_seconds"),
        ({"max_windows": 0}, "predict.max_windows"),
    ],
)
def test_options_out_of_range(change: dict[str, float | str], code: str) -> None:
    with pytest.raises(UserError) as error:
        replace(WindowPlan(StoreSpec(4, SIDE), 1.0, 1.0, 1.0), **change)
    assert error.value.code == code


PEAK_MEMORY = """
import sys
from pathlib import Path
from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.windows import stream_windows
from vidcls.data.sampling import StoreSpec

video = stream_windows(Path(sys.argv[1]), WindowPlan(StoreSpec(10, 32), 3.0, 1.0, 3.0), ("decord", "pyav"))
count = sum(window.coverage == 1.0 for window in video)
# Not resource.getrusage: its ru_maxrss begins with what the parent process held.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(count, peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """2 minutes and 20; held as pixels the frames of the longer one's windows would take 30 MiB."""
    short = write_video(tmp_path / "2.mp4", np.tile(moving(120)[:, :64, :64], (10, 1, 1, 1)), fps=10, options={})
    (tmp_path / "list.txt").write_text(f"file '{short}'\n" * 10)
    ffmpeg("-f", "concat", "-safe", "0", "-i", tmp_path / "list.txt", "-c", "copy", tmp_path / "20.mp4")
    peaks = {}
    for minutes in (2, 20):
        command = [sys.executable, "-c", PEAK_MEMORY, str(tmp_path / f"{minutes}.mp4")]
        count, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert int(count) == minutes * 60 - 2
        peaks[minutes] = int(peak)
    assert peaks[20] < 1.05 * peaks[2], peaks
