"""How a long video is cut into windows, and what a window is. Light: imports no decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from vidcls.data.sampling import StoreSpec, clip_starts, window_starts
from vidcls.errors import check_number


@dataclass(frozen=True)
class WindowPlan:
    """How videos are cut into windows and which frames are read of each window.

    Attributes:
        spec: the frames of a window, or of each of the M clips of a video that is classified whole.
        window_seconds: see `vidcls.data.sampling.window_starts`.
        stride_seconds: likewise.
        max_whole_seconds: a video up to this long is one window, as is one no longer than ``window_seconds``.
    """

    spec: StoreSpec
    window_seconds: float
    stride_seconds: float
    max_whole_seconds: float

    def __post_init__(self) -> None:
        window_starts(0.0, self.window_seconds, self.stride_seconds)  # checks both
        check_number("predict.max_whole_seconds", self.max_whole_seconds)


@dataclass(frozen=True)
class Window:
    """The frames of the half-open range of time [start, end).

    Attributes:
        start_seconds: from the appearance of the video's first frame.
        end_seconds: likewise.
        frames: uint8 [F, R, R, 3], or [M * F, R, R, 3] for a video that is represented by M clips.
        coverage: the fraction of them that is intact, 0..1; other frames take the place of damaged ones.
    """

    start_seconds: float
    end_seconds: float
    frames: UInt8[np.ndarray, "F R R 3"]
    coverage: float


def middle_clip(window: Window, plan: WindowPlan) -> Window:
    """The window itself where it is one clip; where a video is represented by M clips, the middle one as a window."""
    spec = plan.spec
    count, seconds = len(window.frames) // spec.stored_frames, spec.clip_seconds
    if count == 1 or seconds is None:
        return window
    middle = count // 2
    start = window.start_seconds + float(clip_starts(window.end_seconds - window.start_seconds, seconds, count)[middle])
    frames = window.frames[middle * spec.stored_frames :][: spec.stored_frames]
    return replace(window, start_seconds=start, end_seconds=min(start + seconds, window.end_seconds), frames=frames)
