"""How a long video is cut into windows, and what a window is. Light: imports no decoder."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from vidcls.data.sampling import ROUNDING_SECONDS, StoreSpec, clip_starts
from vidcls.errors import UserError, check_integer, check_number

Spans = tuple[tuple[float, float], ...]  # half-open ranges of time, [start, end)


@dataclass(frozen=True)
class WindowPlan:
    """How videos are cut into windows, and which frames are read."""

    spec: StoreSpec  # the frames of a window, or of each of the M clips of a video that is classified whole
    window_seconds: float
    stride_seconds: float
    max_whole_seconds: float  # a video up to this long is one window, as is one no longer than window_seconds
    max_windows: int = 10_000  # of one video
    coarse_stride_seconds: float | None = None  # between the starts of the windows that are read; None reads all
    spans: Spans | None = None  # if given, only windows that overlap these are read; in seconds from the first frame

    def __post_init__(self) -> None:
        check_windows(self.window_seconds, self.stride_seconds)
        check_number("predict.max_whole_seconds", self.max_whole_seconds)
        check_integer("predict.max_windows", self.max_windows)

    def choose_windows(
        self, appearances: Float[np.ndarray, " N"], seconds: float
    ) -> tuple[Float[np.ndarray, " W"], int | None]:
        """The start times of the windows to read; and if these leave time unseen, the number of all windows, else None.

        Windows are half-open ranges of time, a stride apart; the last one is moved back so that it ends with the video.
        Example, a window of 4 s every 3 s in a video of 12 s::

            [0    4)
                  [3    7)
                     [6    10)
                          [8   12)

        Skips windows that would only show the picture of the window before them again. Of the rest, reads one per
        ``coarse_stride_seconds`` (each that stands for such a time) and the last, or those that overlap ``spans``; but
        at most ``max_windows``, evenly spaced. ``appearances`` are the times at which the N frames appear, ascending
        from 0.
        """
        window, stride = self.window_seconds, self.stride_seconds
        if seconds <= window:
            return np.zeros(1), None
        last = seconds - window
        # The number of windows before the last one. 0.3 s in steps of 0.1 must not get another window because
        # (0.3 - 0.1) / 0.1 is slightly above 2.
        before = max(int(np.ceil(last / stride - ROUNDING_SECONDS)), 1)
        first = np.floor((appearances - window) / stride + ROUNDING_SECONDS) + 1
        final = np.clip(np.ceil(appearances / stride - ROUNDING_SECONDS), 0, before).astype(np.int64)
        first = np.maximum(np.clip(first, 0, before).astype(np.int64), np.append(0, final[:-1] + 1))
        counts = np.maximum(final - first + 1, 0)  # of windows that do not belong to an earlier frame
        ends = np.cumsum(counts)
        total = int(ends[-1])
        sparse = None if self.spans is not None else self.coarse_stride_seconds
        step = max(int((sparse or 0) / stride), 1)
        each = np.arange(total)
        picture = np.searchsorted(ends, each, side="right")
        windows = first[picture] + each - (ends - counts)[picture]
        # Those that hold a multiple of the step, also by a picture that stays until then.
        chosen = np.flatnonzero(np.append(-(-windows[:-1] // step) * step < windows[1:], True))
        if len(chosen) > self.max_windows:
            chosen = np.linspace(0, total - 1, self.max_windows).round().astype(np.int64)
        following = np.append(windows, windows[-1] + 1)
        gaps = following[np.append(chosen[1:], total)] - following[chosen + 1] + 1  # from one to the next, in strides
        unseen = gaps.max() * stride > max(window, sparse or 0) + ROUNDING_SECONDS
        starts = np.where(windows < before, windows * float(stride), last)[chosen]
        if self.spans is not None:
            starts = starts[
                [any(start < end and start + window > begin for begin, end in self.spans) for start in starts]
            ]
        return starts, total if unseen else None


def check_windows(window_seconds: float, stride_seconds: float) -> None:
    """Raises `UserError` unless 0 < ``stride_seconds`` <= ``window_seconds``."""
    check_number("predict.window_seconds", window_seconds, open_ends=True)
    check_number("predict.stride_seconds", stride_seconds, open_ends=True)
    if stride_seconds > window_seconds:
        expected = f"predict.stride_seconds to be at most predict.window_seconds={window_seconds:g}"
        remedy = "Shorten the stride or lengthen the window: what lies between two windows would never be seen."
        raise UserError(expected, f"{stride_seconds:g}", remedy, "stride-longer-than-window")


@dataclass(frozen=True)
class Window:
    """The frames of the half-open range of time [start, end), counted from the appearance of the first frame.

    ``frames`` is uint8 [F, R, R, 3], or [M * F, R, R, 3] for a video that is represented by M clips. ``coverage`` is
    the fraction of them that is intact, 0..1; other frames take the place of damaged ones.
    """

    start_seconds: float
    end_seconds: float
    frames: UInt8[np.ndarray, "F R R 3"]
    coverage: float


def middle_clip(window: Window, plan: WindowPlan) -> Window:
    """The window itself if it is a single clip, else the middle one of its M clips."""
    spec = plan.spec
    count, seconds = len(window.frames) // spec.stored_frames, spec.clip_seconds
    if count == 1 or seconds is None:
        return window
    middle = count // 2
    start = window.start_seconds + float(clip_starts(window.end_seconds - window.start_seconds, seconds, count)[middle])
    frames = window.frames[middle * spec.stored_frames :][: spec.stored_frames]
    return replace(window, start_seconds=start, end_seconds=min(start + seconds, window.end_seconds), frames=frames)
