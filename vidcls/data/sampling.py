"""Frame sampling: pure functions from timestamps to frame indices.

Uniform sampling cuts the video into T parts of equal *time* and takes the frame on screen in the middle of each.
Ten frames at a steady rate, T = 4 (``x`` taken, ``.`` not; a bar is a segment's end)::

    frame    0 1 2 3 4 5 6 7 8 9
             . x .|. x . . x|. x .     seconds 1.25 3.75 6.25 8.75 at 1 frame per second

With a variable frame rate the same four instants fall on other frames. The same sampling is applied to each clip, and
to each window of a long video.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vidcls.errors import UserError, check_integer

SAMPLINGS = ("uniform", "first")
# Timestamps pass through single precision in decord: two instants nearer than this are one, or a segment's middle that
# falls exactly on a frame's start (40 frames, T = 20) would take that frame or the one before it by rounding error.
TIE_SECONDS = 1e-4
ROUNDING_SECONDS = 1e-6  # sums of strides are not exact in floating point


@dataclass(frozen=True)
class ClipSpec:
    """The network's input from a video: M clips of T frames of R x R pixels."""

    num_frames: int  # T, of a clip
    resolution: int  # R
    sampling: str = "uniform"  # how the frames are chosen, see `frame_indices`
    clip_seconds: float | int | None = None  # None: one clip, the whole video
    num_clips: int = 1  # M; see `clip_starts` for where they lie


@dataclass(frozen=True)
class StoreSpec:
    """What is decoded and stored of a video: uint8 [M * F, stored_resolution, stored_resolution, 3], by clips."""

    stored_frames: int  # F, of a clip
    stored_resolution: int
    sampling: str = "uniform"
    clip_seconds: float | int | None = None
    num_clips: int = 1

    @property
    def frames_per_video(self) -> int:
        return self.num_clips * self.stored_frames  # M * F


def frame_indices(
    timestamps: Float[np.ndarray, " N"], end_seconds: float, num_frames: int, sampling: str
) -> Int[np.ndarray, " T"]:
    """Chooses T of a video's N frames by the time at which they are shown.

    Args:
        timestamps: when each frame appears, in seconds, ascending.
        end_seconds: when the last frame disappears.
        num_frames: T. A video with fewer frames repeats some, in order.
        sampling: ``uniform`` (the frame on screen in the middle of T equal parts) or ``first`` (frames 0..T-1).

    >>> frame_indices(np.arange(10.0), 10.0, 4, "uniform").tolist()
    [1, 3, 6, 8]
    >>> frame_indices(np.array([0.0, 1.0, 9.0]), 10.0, 4, "uniform").tolist()  # frame 1 stays on screen 8 seconds
    [1, 1, 1, 1]
    """
    last = len(timestamps) - 1
    if sampling == "first":
        return np.minimum(np.arange(num_frames), last)
    start, end = float(timestamps[0]), max(end_seconds, float(timestamps[-1]))
    middles = start + (np.arange(num_frames) + 0.5) * ((end - start) / num_frames)
    return np.clip(np.searchsorted(timestamps, middles + TIE_SECONDS, side="right") - 1, 0, last)


def window_indices(
    timestamps: Float[np.ndarray, " N"], start_seconds: float, end_seconds: float, num_frames: int, sampling: str
) -> Int[np.ndarray, " F"]:
    """Chooses F of a video's N frames for its window [start, end), as `frame_indices` would for a video of its own.

    The window's first frame is the one on screen when it starts, which may have appeared earlier.

    Example, 10 frames at 1 per second, F = 2 (``x`` taken): middles at 4 and 6 of the window [3, 7)::

        . . . . x . x . . .
              [       )

        >>> window_indices(np.arange(10.0), 3.0, 7.0, 2, "uniform").tolist()
        [4, 6]
    """
    first = max(int(np.searchsorted(timestamps, start_seconds + TIE_SECONDS, side="right")) - 1, 0)
    stop = max(int(np.searchsorted(timestamps, end_seconds - TIE_SECONDS, side="left")), first + 1)
    shown = np.maximum(timestamps[first:stop], start_seconds)
    return first + frame_indices(shown, end_seconds, num_frames, sampling)


def clip_starts(seconds: float, clip_seconds: float | int, num_clips: int) -> Float[np.ndarray, " M"]:
    """The start times of the M clips that represent the video [0, ``seconds``), ascending.

    They are evenly spaced, and may overlap; the first starts and the last ends with the video. A single clip is in the
    middle. A video no longer than one clip yields the whole video M times.

    Example, clips of 4 s of a video of 10 s, M = 3 and M = 1::

        [0    4)
              [3    7)
                    [6    10)
              [3    7)

        >>> clip_starts(10.0, 4.0, 3).tolist(), clip_starts(10.0, 4.0, 1).tolist()
        ([0.0, 3.0, 6.0], [3.0])
    """
    last = max(seconds - clip_seconds, 0.0)
    return np.linspace(0.0, last, num_clips) if num_clips > 1 else np.array([last / 2])


def clip_indices(timestamps: Float[np.ndarray, " N"], end_seconds: float, spec: StoreSpec) -> Int[np.ndarray, " MF"]:
    """Chooses F of a video's N frames for each of its M clips, one clip after the other; see `frame_indices`.

    Example, 10 frames at 1 per second, two clips of 6 s with two frames each (``x`` taken)::

        . x . . x . . . . .
        [           )
        . . . . . x . . x .
                [           )

        >>> clip_indices(np.arange(10.0), 10.0, StoreSpec(2, 64, "uniform", 6.0, 2)).tolist()
        [1, 4, 5, 8]
    """
    if spec.clip_seconds is None:
        return frame_indices(timestamps, end_seconds, spec.stored_frames, spec.sampling)
    first, end = float(timestamps[0]), max(end_seconds, float(timestamps[-1]))
    starts = (first + clip_starts(end - first, spec.clip_seconds, spec.num_clips)).tolist()
    bounds = [(start, min(start + spec.clip_seconds, end)) for start in starts]
    return np.concatenate([window_indices(timestamps, *each, spec.stored_frames, spec.sampling) for each in bounds])


def stored_frames(num_frames: int, store_num_frames: int | None, sampling: str) -> int:
    """F, the number of stored frames for a run that uses T = ``num_frames``: T by default, and at least.

    Raises `UserError` for uniform sampling if T does not divide F: the frames used would not be evenly spaced.
    """
    if store_num_frames is None or check_integer("data.store.num_frames", store_num_frames) <= num_frames:
        return num_frames
    if sampling == "uniform" and store_num_frames % num_frames:
        raise UserError(
            f"data.store.num_frames to be a multiple of data.num_frames={num_frames}",
            str(store_num_frames),
            f"Use {store_num_frames // num_frames * num_frames} or {-(-store_num_frames // num_frames) * num_frames}.",
            "data.store.num_frames",
        )
    return store_num_frames


def select_frames(
    stored: int, num_frames: int, sampling: str, jitter: np.random.Generator | None = None
) -> Int[np.ndarray, " T"]:
    """Which of F stored frames a clip of T uses.

    The stored frames fall into T runs of k = F / T; the middle one of each is used (of an even number, the later of
    the two), or, with ``jitter``, one drawn at random from each run. ``first`` uses stored frames 0..T-1.

    >>> select_frames(6, 2, "uniform").tolist()  # .x..x.
    [1, 4]
    """
    if sampling == "first":
        return np.arange(num_frames)
    k = stored // num_frames
    offset = k // 2 if jitter is None else jitter.integers(0, k, size=num_frames)
    return np.arange(num_frames) * k + offset
