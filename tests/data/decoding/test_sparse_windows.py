"""Windows that are far apart: what lies between them is not decoded, and they show what they would otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.frames import SIDE, moving
from helpers.videos import write_video

from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.result import DECODERS
from vidcls.data.decoding.windows import WindowStream, stream_windows
from vidcls.data.sampling import StoreSpec, window_indices


def assert_windows_of(path: Path, everything: np.ndarray, fps: int, threads: int = 1) -> WindowStream:
    plan = WindowPlan(StoreSpec(4, SIDE, "uniform"), 1.0, 1.0, 0.0, max_windows=len(everything) // fps // 5)
    video = stream_windows(path, plan, DECODERS, threads)
    for one in video:
        times = np.arange(len(everything)) / fps
        expected = window_indices(times, one.start_seconds, one.end_seconds, 4, "uniform")
        assert np.array_equal(one.frames, everything[expected]) and one.coverage == 1.0
    assert video.result is not None and "max_windows" in video.result.reason and ";" not in video.result.reason
    return video


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("bf", ["0", "3"])
def test_what_lies_between_windows_is_not_decoded(tmp_path: Path, suffix: str, bf: str, threads: int) -> None:
    options = {"crf": "20", "bf": bf, "g": "20", "x264-params": "scenecut=0"}
    path = write_video(tmp_path / f"a.{suffix}", moving(600), fps=20, options=options)
    everything, _ = decode(path, StoreSpec(600, SIDE, "first"), ("pyav",))
    video = assert_windows_of(path, everything, 20, threads)
    assert len(video) == 6 and video.frames_decoded < 6 * 2 * 20  # a window reaches into two groups of 20


@pytest.mark.parametrize("params", ["open-gop=1:bframes=3", "intra-refresh=1:bframes=0", "keyint=infinite"])
def test_frames_between_windows_that_others_need_are_decoded(tmp_path: Path, params: str) -> None:
    path = write_video(tmp_path / "a.mp4", moving(300), fps=20, options={"g": "20", "x264-params": params})
    everything, _ = decode(path, StoreSpec(300, SIDE, "first"), ("pyav",))
    assert_windows_of(path, everything, 20)


def test_of_a_damaged_file_all_is_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", moving(600), fps=20, options={"crf": "20", "g": "20"})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2000)
    plan = WindowPlan(StoreSpec(4, SIDE, "uniform"), 1.0, 1.0, 0.0, max_windows=6)
    video = stream_windows(path, plan, DECODERS)
    assert len(list(video)) == 6 and video.frames_decoded > 300
