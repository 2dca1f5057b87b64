"""The metrics of a cross-validation, from out-of-fold predictions. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vidcls.metrics.bootstrap import percentile_interval, resample_videos
from vidcls.metrics.calibration import CALIBRATION_BINS, confidence_bins, safe_log

RESAMPLES, SEED = 2000, 0
# Chance alone makes it larger: in few videos, and again in their resamples, which reflection subtracts (the basic
# bootstrap, Davison & Hinkley 1997, section 5.2.1).
BIASED = "calibration_error"


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of N videos, in R repeats (other folds) and S seeds."""

    labels: Int[np.ndarray, " N"]
    groups: Int[np.ndarray, " N"]  # resampled for intervals, such as creators
    probabilities: Float[np.ndarray, "R S N K"]

    def metrics(
        self, weights: Float[np.ndarray, "D N"], classes: Sequence[str]
    ) -> dict[str, Float[np.ndarray, "R S D"]]:
        """Each metric for D weightings of the videos, pooled over the folds of a repeat and seed; NaN if undefined."""
        runs = [
            self._of_run(run, weights, classes) for run in self.probabilities.reshape(-1, *self.probabilities.shape[2:])
        ]
        shape = (*self.probabilities.shape[:2], len(weights))
        return {name: np.reshape([run[name] for run in runs], shape) for name in runs[0]}

    def _of_run(
        self, run: Float[np.ndarray, "N K"], weights: Float[np.ndarray, "D N"], classes: Sequence[str]
    ) -> dict[str, Float[np.ndarray, " D"]]:
        n, rows = weights.sum(axis=1), np.arange(len(run))
        predicted, confidence = run.argmax(axis=1), run.max(axis=1)
        correct = (predicted == self.labels).astype(np.float64)
        # A bin's |accuracy - confidence|, weighted by its videos, is the absolute value of the sum of differences.
        gaps = np.zeros((len(run), CALIBRATION_BINS))
        gaps[rows, confidence_bins(confidence)] = correct - confidence
        areas = [_auroc(run[:, k], self.labels == k, weights) for k in range(len(classes))]
        found = {
            "accuracy": weights @ correct / n,
            "auroc": np.ma.masked_invalid(areas).mean(axis=0).filled(np.nan),  # of the classes where it is defined
            "loss": weights @ -safe_log(run)[rows, self.labels] / n,
            "calibration_error": np.abs(weights @ gaps).sum(axis=1) / n,
        }
        for k, name in enumerate(classes):
            share, true = weights @ (predicted == k) / n, weights @ (self.labels == k) / n
            found |= {
                f"predicted_share/{name}": share,
                f"true_share/{name}": true,
                f"share_difference/{name}": share - true,
            }
        return found

    def resampled(self, classes: Sequence[str]) -> dict[str, Float[np.ndarray, " D"]]:
        """The mean of each metric over repeats and seeds, in resamples of the groups with all their videos and runs."""
        parts = [self.metrics(weights, classes) for weights in resample_videos(self.groups, RESAMPLES, SEED)]
        return {name: np.concatenate([part[name].mean(axis=(0, 1)) for part in parts]) for name in parts[0]}


def summarise_out_of_fold(predictions: OutOfFold, classes: Sequence[str]) -> dict[str, Any]:
    """The mean of each metric over repeats and seeds, its interval and spread; JSON-ready, None if undefined.

    ``ci95`` is of `OutOfFold.resampled`, reflected at the mean for `BIASED`. ``std_repeats`` is the standard deviation
    over repeats of the mean over seeds, ``std_seeds`` that over seeds of the mean over repeats.
    """
    point = predictions.metrics(np.ones((1, len(predictions.labels))), classes)
    drawn, several = predictions.resampled(classes), len(np.unique(predictions.groups)) > 1
    summary: dict[str, Any] = {}
    for name, values in point.items():
        runs = values[..., 0]  # [R, S]
        resampled = np.maximum(2 * runs.mean() - drawn[name], 0) if name == BIASED else drawn[name]
        summary[name] = {
            "mean": _number(runs.mean()),
            "ci95": percentile_interval(resampled, several),
            "std_repeats": _std(runs.mean(axis=1)),
            "std_seeds": _std(runs.mean(axis=0)),
            "min": _number(runs.min()),
            "max": _number(runs.max()),
        }
    return summary


def compare_out_of_fold(one: OutOfFold, other: OutOfFold, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``other`` minus ``one`` for each metric, with paired resamples; raises ValueError if the videos differ."""
    if not (np.array_equal(one.labels, other.labels) and np.array_equal(one.groups, other.groups)):
        raise ValueError("expected predictions of the same videos, in the same order")
    every, several = np.ones((1, len(one.labels))), len(np.unique(one.groups)) > 1
    before, after = (each.metrics(every, classes) for each in (one, other))
    drawn_before, drawn_after = (each.resampled(classes) for each in (one, other))
    differences = {}
    for name in before:
        difference, drawn = after[name].mean() - before[name].mean(), drawn_after[name] - drawn_before[name]
        interval = percentile_interval(2 * difference - drawn if name == BIASED else drawn, several)
        differences[name] = {"mean": _number(difference), "ci95": interval}
    return differences


def _auroc(
    scores: Float[np.ndarray, " N"], positive: np.ndarray, weights: Float[np.ndarray, "D N"]
) -> Float[np.ndarray, " D"]:
    """The area under the ROC curve of weighted videos; ties count half. NaN without positive or negative videos."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of each different score
    ordered, is_positive = weights[:, order], positive[order]
    above = np.add.reduceat(ordered * is_positive, starts, axis=1)
    below = np.add.reduceat(ordered * ~is_positive, starts, axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    won = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _std(values: Float[np.ndarray, " _"]) -> float | None:
    return _number(values.std(ddof=1)) if len(values) > 1 else None


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
