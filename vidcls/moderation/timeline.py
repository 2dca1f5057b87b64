"""From windows of a long video to when something was shown and what the video is: pure functions, seconds in and out.

A window is a half-open range of time, [start, start + window_seconds), that the network judges as one clip. Windows
overlap where the stride is shorter than they are, see `vidcls.data.sampling.window_starts`. What follows turns their
probabilities into segments (from when to when) and into one score per class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vidcls.data.sampling import ROUNDING_SECONDS
from vidcls.errors import UserError, check_choice, check_integer, check_number

SCORES = ("max", "mean", "top-k mean")


@dataclass(frozen=True)
class Segment:
    """A stretch of time [start, end) in which one class was likely, and where it was most likely.

    Attributes:
        start_seconds: from the video's first frame.
        end_seconds: likewise; not part of the segment.
        peak: the highest probability in it.
        peak_seconds: the middle of the (first) window that has it.
    """

    start_seconds: float
    end_seconds: float
    peak: float
    peak_seconds: float


def segments(
    starts: Float[np.ndarray, " W"],
    window_seconds: float,
    end_seconds: float,
    probabilities: Float[np.ndarray, " W"],
    enter: float,
    leave: float,
    min_seconds: float,
) -> list[Segment]:
    """When one class was shown, by hysteresis: a segment begins with p >= ``enter`` and goes on while p >= ``leave``.

    Each window speaks for its *cell*, the time nearer to its centre than to any other window's; so a passage is not
    stretched by the length of the windows that touch it. Cells tile the video, hence segments never touch: between two
    of them lies a window below ``leave``.

    Args:
        starts: of the W windows, ascending, as `vidcls.data.sampling.window_starts` gives them.
        window_seconds: how long they are.
        end_seconds: when the video ends.
        probabilities: of the class, window by window.
        enter: the probability that begins a segment.
        leave: the one that keeps it going, at most ``enter``.
        min_seconds: shorter segments are dropped. One of n windows counts as n strides long at least: the cell next to
            the last window, which was moved back, is narrower for no reason of the video's.

    Returns:
        The segments in order of time, disjoint, within [0, ``end_seconds``).

    Raises:
        UserError: a probability outside [0, 1], ``leave`` above ``enter``, or a negative ``min_seconds``.

    Example, windows of 4 s each 2 s in a video of 12 s, centres at 2 4 6 8 10, so cells are cut at 3 5 7 9; enter 0.8,
    leave 0.5::

        seconds  0     3   5   7   9      12
        p        | 0.1 |0.9|0.6|0.3| 0.6  |      0.6 goes on with what 0.9 began; alone, at the end, it begins nothing
                       [ shown )

        >>> from vidcls.data.sampling import window_starts
        >>> p = np.array([0.1, 0.9, 0.6, 0.3, 0.6])
        >>> segments(window_starts(12.0, 4.0, 2.0), 4.0, 12.0, p, enter=0.8, leave=0.5, min_seconds=0.0)
        [Segment(start_seconds=3.0, end_seconds=7.0, peak=0.9, peak_seconds=4.0)]
    """
    check_number("predict.enter", enter, maximum=1.0)
    check_number("predict.leave", leave, maximum=1.0)
    check_number("predict.min_seconds", min_seconds)
    if leave > enter:
        raise UserError(f"predict.leave to be at most predict.enter={enter:g}", f"{leave:g}", "Lower predict.leave.")
    centres = (starts + np.minimum(starts + window_seconds, end_seconds)) / 2
    cuts = np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [end_seconds]])  # [W + 1]
    stride = float(np.diff(starts).max(initial=0.0))
    found = []
    for first, last in _runs(probabilities, enter, leave):
        start, end = float(cuts[first]), float(cuts[last + 1])
        if max(end - start, (last + 1 - first) * stride) >= min_seconds - ROUNDING_SECONDS:
            top = first + int(np.argmax(probabilities[first : last + 1]))
            found.append(Segment(start, end, float(probabilities[top]), float(centres[top])))
    return found


def _runs(probabilities: Float[np.ndarray, " W"], enter: float, leave: float) -> list[tuple[int, int]]:
    """First and last window of each segment."""
    runs: list[tuple[int, int]] = []
    inside = False
    for window, probability in enumerate(probabilities):
        begins = not inside and probability >= enter
        inside = begins or (inside and probability >= leave)
        if begins:
            runs.append((window, window))
        elif inside:
            runs[-1] = (runs[-1][0], window)
    return runs


def video_score(probabilities: Float[np.ndarray, "W K"], how: str, k: int = 3) -> Float[np.ndarray, " K"]:
    """One score per class for the whole video, each class by itself.

    - ``max``: its highest probability in any window.
    - ``mean``: its mean over all windows.
    - ``top-k mean``: its mean over the ``k`` windows in which it is highest (all, where there are fewer): like ``max``,
      but one stray window is not enough.

    With one window all three are that window's probabilities, bit for bit. With more, the scores of ``max`` and
    ``top-k mean`` come from different windows for different classes and do **not** sum to 1. They are not rescaled: a
    threshold on a class's probability then means the same for a window and for a video, and a video that is clearly
    harmless for ten minutes and clearly harmful for three seconds scores high for both classes, as it should. For the
    same reason the highest score does not name the video's class: see `video_class`.

    Raises:
        UserError: ``how`` unknown or ``k`` < 1.

    Example:
        >>> windows = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
        >>> video_score(windows, "max").tolist()
        [0.9, 0.8]
        >>> video_score(windows, "top-k mean", k=2).round(6).tolist()
        [0.8, 0.55]
    """
    best = np.take_along_axis(probabilities, _best_windows(probabilities, how, k), axis=0)
    return best.mean(axis=0, dtype=np.float64).astype(probabilities.dtype)


def video_class(probabilities: Float[np.ndarray, "W K"], harmless: int, how: str, k: int = 3) -> int:
    """The class of the whole video: harmless only where no harmful class holds.

    A class holds where it is also the most probable one, on average, in the very windows that made its score: in the
    window of its peak (``max``), in its k highest ones (``top-k mean``), over the whole video (``mean``). Of the
    harmful classes that hold the one with the highest score is taken. With one window this is the most probable class,
    the first of them at a tie, as in `vidcls.metrics.classification`.

    Args:
        probabilities: of K classes in W windows; each row sums to 1.
        harmless: the index of the harmless class.
        how: as for `video_score`.
        k: likewise.

    Example: harmless scores higher (0.9), but at its peak the harmful class wins.
        >>> video_class(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]), harmless=0, how="max")
        1
        >>> video_class(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]), harmless=0, how="mean")
        0
    """
    score = video_score(probabilities, how, k)
    best = _best_windows(probabilities, how, k)
    holding = [
        c
        for c in range(probabilities.shape[1])
        if c != harmless and int(np.argmax(probabilities[best[:, c]].mean(axis=0, dtype=np.float64))) == c
    ]
    return max(holding, key=lambda c: float(score[c])) if holding else harmless


def _best_windows(probabilities: Float[np.ndarray, "W K"], how: str, k: int) -> Int[np.ndarray, "k K"]:
    """For each class the windows, in order of time, that make its score."""
    check_choice("predict.score", how, SCORES)
    check_integer("predict.top_k", k)
    windows = len(probabilities)
    used = {"max": 1, "mean": windows, "top-k mean": min(k, windows)}[how]
    # A stable sort: of equally probable windows the earlier ones count.
    return np.sort(np.argsort(-probabilities, axis=0, kind="stable")[:used], axis=0)
