"""From the windows of a long video (half-open ranges of time) to segments. Pure."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vidcls.data.sampling import ROUNDING_SECONDS


@dataclass(frozen=True)
class Segment:
    """A range of time [start, end) in which a class is probable."""

    start_seconds: float
    end_seconds: float
    peak: float  # the highest probability in it
    peak_seconds: float  # the middle of the (first) window with that probability


def cell_cuts(
    starts: Float[np.ndarray, " W"], ends: Float[np.ndarray, " W"], end_seconds: float
) -> Float[np.ndarray, " W+1"]:
    """The boundaries of the cells of W windows: the time that is nearer to a window's centre than to any other's.

    Time between two windows belongs to the earlier one, as does time after the last one: windows that were skipped
    would only show its last picture again (see `vidcls.data.decoding.plan.WindowPlan.choose_windows`).
    """
    centres = (starts + ends) / 2
    unread = starts[1:] > ends[:-1] + ROUNDING_SECONDS
    return np.concatenate([[0.0], np.where(unread, starts[1:], (centres[1:] + centres[:-1]) / 2), [end_seconds]])


def segments(
    starts: Float[np.ndarray, " W"],
    window_seconds: float,
    end_seconds: float,
    probabilities: Float[np.ndarray, " W"],
    enter_threshold: float,
    exit_threshold: float,
    min_seconds: float,
) -> list[Segment]:
    """The segments of a class, by hysteresis: each starts at p >= enter and lasts while p >= exit threshold.

    Each window represents its *cell*, see `cell_cuts`. Segments shorter than ``min_seconds`` are dropped; one of n
    windows counts as at least n strides long.

    Example, windows of 4 s every 2 s in a video of 12 s, centres at 2 4 6 8 10, cells cut at 3 5 7 9; thresholds 0.8
    and 0.5::

        seconds  0     3   5   7   9      12
        p        | 0.1 |0.9|0.6|0.3| 0.6  |      0.6 continues what 0.9 started; at the end it starts nothing
                       [ shown )

        >>> p = np.array([0.1, 0.9, 0.6, 0.3, 0.6])
        >>> segments(np.arange(0.0, 10.0, 2.0), 4.0, 12.0, p, 0.8, 0.5, min_seconds=0.0)
        [Segment(start_seconds=3.0, end_seconds=7.0, peak=0.9, peak_seconds=4.0)]
    """
    ends = np.minimum(starts + window_seconds, end_seconds)
    centres, cuts = (starts + ends) / 2, cell_cuts(starts, ends, end_seconds)
    gaps = np.sort(np.diff(starts))  # nearly all are a stride; more where a picture stays, less before the last window
    stride = float(gaps[len(gaps) // 2]) if len(gaps) else 0.0
    runs: list[list[int]] = []  # the windows of each segment
    inside = False
    for window, probability in enumerate(probabilities.tolist()):
        if not inside and probability >= enter_threshold:
            runs.append([])
        inside = probability >= (exit_threshold if inside else enter_threshold)
        if inside:
            runs[-1].append(window)
    found = []
    for run in runs:
        start, end = float(cuts[run[0]]), float(cuts[run[-1] + 1])
        if max(end - start, len(run) * stride) >= min_seconds - ROUNDING_SECONDS:
            top = run[0] + int(np.argmax(probabilities[run]))
            found.append(Segment(start, end, float(probabilities[top]), float(centres[top])))
    return found
