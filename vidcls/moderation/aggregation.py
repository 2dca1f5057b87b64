"""Aggregates the probabilities of a video's windows to one score per class, and to the video's class. Pure."""

import numpy as np
from jaxtyping import Float, Int

AGGREGATIONS = ("max", "mean", "top_k_mean")
MAX_REPEATED = 100_000  # rows


def video_score(probabilities: Float[np.ndarray, "W K"], aggregation: str, top_k: int = 3) -> Float[np.ndarray, " K"]:
    """One score per class: its highest, mean or mean of the ``top_k`` highest probabilities over a video's windows.

    With several windows, the scores of ``max`` and ``top_k_mean`` come from different ones and do not sum to 1, so the
    highest score does not determine the video's class: see `video_class`.

    Example:
        >>> windows = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
        >>> video_score(windows, "max").tolist(), video_score(windows, "top_k_mean", top_k=2).round(6).tolist()
        ([0.9, 0.8], [0.8, 0.55])
    """
    best = np.take_along_axis(probabilities, _best_windows(probabilities, aggregation, top_k), axis=0)
    return best.mean(axis=0, dtype=np.float64).astype(probabilities.dtype)


def video_class(probabilities: Float[np.ndarray, "W K"], safe_class: int, aggregation: str, top_k: int = 3) -> int:
    """The class of the whole video: the harmful class with the highest score, else ``safe_class``.

    Only classes count that are also the most probable ones on average over the windows that determine their score. With
    one window this is the most probable class.
    """
    score = video_score(probabilities, aggregation, top_k)
    best = _best_windows(probabilities, aggregation, top_k)
    holding = [
        c
        for c in range(probabilities.shape[1])
        if c != safe_class and int(np.argmax(probabilities[best[:, c]].mean(axis=0, dtype=np.float64))) == c
    ]
    return max(holding, key=lambda c: float(score[c])) if holding else safe_class


def repeat_for_unread(
    probabilities: Float[np.ndarray, "W K"], starts: Float[np.ndarray, " W"], last_start: float, stride_seconds: float
) -> Float[np.ndarray, "_ K"]:
    """Each window as often as those that it stands for: where a picture stays, those that would show it are not read.

    ``last_start`` is when the last window of the video would start. Of very many rows, fewer in the same proportions.

    >>> repeat_for_unread(np.array([[0.1], [0.9], [0.2]]), np.array([0.0, 1.0, 4.0]), 4.0, 1.0).ravel().tolist()
    [0.1, 0.9, 0.9, 0.9, 0.2]
    """
    counts = np.maximum(np.rint(np.diff(starts, append=last_start + stride_seconds) / stride_seconds), 1)
    counts = np.ceil(counts * min(1, MAX_REPEATED / counts.sum()))
    return np.repeat(probabilities, counts.astype(np.int64), axis=0)


def _best_windows(probabilities: Float[np.ndarray, "W K"], aggregation: str, top_k: int) -> Int[np.ndarray, "k K"]:
    """For each class the windows, in order of time, that determine its score."""
    windows = len(probabilities)
    used = {"max": 1, "mean": windows, "top_k_mean": min(top_k, windows)}[aggregation]
    # A stable sort: of equally probable windows the earlier ones count.
    return np.sort(np.argsort(-probabilities, axis=0, kind="stable")[:used], axis=0)
