"""The metrics of a cross-validation, from out-of-fold predictions. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vidcls.metrics.bootstrap import PERCENTILES, resample_videos
from vidcls.metrics.calibration import CALIBRATION_BINS, confidence_bins, safe_log

RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of N videos, in R repeats (other folds) and S seeds."""

    labels: Int[np.ndarray, " N"]
    groups: Int[np.ndarray, " N"]  # resampled for intervals, such as creators
    probabilities: Float[np.ndarray, "R S N K"]

    def metrics(self, weights: Float[np.ndarray, "D N"], classes: Sequence[str]) -> dict[str, Float[np.ndarray, "..."]]:
        """Each metric for D weightings of the videos: [R, S, D]; the true shares [D].

        Metrics pool the folds of a repeat and seed. ``auroc`` is NaN if no class has both positive and negative videos.
        """
        n = weights.sum(axis=1)
        found: dict[str, list[np.ndarray]] = {
            name: [] for name in ("accuracy", "auroc", "loss", "calibration_error", *map(_predicted, classes))
        }
        for run in self.probabilities.reshape(-1, *self.probabilities.shape[2:]):  # [N, K]
            predicted = run.argmax(axis=1)
            correct = (predicted == self.labels).astype(np.float64)
            losses = -safe_log(run)[np.arange(len(run)), self.labels]
            # A bin's |accuracy - confidence|, weighted by its videos, is the absolute value of the sum of differences.
            gaps = np.zeros((len(run), CALIBRATION_BINS))
            confidence = run.max(axis=1)
            gaps[np.arange(len(run)), confidence_bins(confidence)] = correct - confidence
            found["accuracy"].append(weights @ correct / n)
            found["loss"].append(weights @ losses / n)
            found["calibration_error"].append(np.abs(weights @ gaps).sum(axis=1) / n)
            areas = np.array([_auroc(run[:, k], self.labels == k, weights) for k in range(len(classes))])
            defined = np.isfinite(areas)
            total = np.where(defined, areas, 0).sum(axis=0)
            nowhere = np.full(len(n), np.nan)
            found["auroc"].append(np.divide(total, defined.sum(axis=0), out=nowhere, where=defined.any(axis=0)))
            for k, name in enumerate(classes):
                found[_predicted(name)].append(weights @ (predicted == k) / n)
        shape = (*self.probabilities.shape[:2], len(n))
        true = {_true(name): weights @ (self.labels == k) / n for k, name in enumerate(classes)}
        return {name: np.reshape(values, shape) for name, values in found.items()} | true


def summarise_out_of_fold(predictions: OutOfFold, classes: Sequence[str]) -> dict[str, Any]:
    """The mean of each metric over repeats and seeds, its interval and spread; JSON-ready, None if undefined.

    ``ci95`` resamples groups with all their videos and runs (see `vidcls.metrics.bootstrap`). ``std_repeats`` is the
    standard deviation over repeats of the mean over seeds, ``std_seeds`` that over seeds of the mean over repeats.
    """
    point = predictions.metrics(np.ones((1, len(predictions.labels))), classes)
    drawn = _stack(
        [
            _means(predictions.metrics(weights, classes))
            for weights in resample_videos(predictions.groups, RESAMPLES, SEED)
        ]
    )
    several = len(np.unique(predictions.groups)) > 1
    summary: dict[str, Any] = {}
    for name, values in point.items():
        if values.ndim == 1:
            summary[name] = {"mean": _number(values[0]), "ci95": _interval(drawn[name], several)}
            continue
        runs = values[..., 0]  # [R, S]
        summary[name] = {
            "mean": _number(runs.mean()),
            "ci95": _interval(drawn[name], several),
            "std_repeats": _std(runs.mean(axis=1)),
            "std_seeds": _std(runs.mean(axis=0)),
            "min": _number(runs.min()),
            "max": _number(runs.max()),
        }
    for name in classes:
        difference = point[_predicted(name)].mean() - point[_true(name)][0]
        resampled = drawn[_predicted(name)] - drawn[_true(name)]
        summary[f"share_difference/{name}"] = {"mean": _number(difference), "ci95": _interval(resampled, several)}
    return summary


def compare_out_of_fold(one: OutOfFold, other: OutOfFold, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``other`` minus ``one`` for each metric, with paired resamples; raises ValueError if the videos differ."""
    same = np.array_equal(one.labels, other.labels) and np.array_equal(one.groups, other.groups)
    if not same:
        raise ValueError("expected predictions of the same videos, in the same order")
    ones = np.ones((1, len(one.labels)))
    names = ("accuracy", "auroc", "loss", "calibration_error")
    first, second = (_means(each.metrics(ones, classes)) for each in (one, other))
    pairs = [
        [_means(each.metrics(weights, classes)) for each in (one, other)]
        for weights in resample_videos(one.groups, RESAMPLES, SEED)
    ]
    before, after = (_stack([pair[index] for pair in pairs]) for index in (0, 1))
    return {
        name: {
            "mean": _number((second[name] - first[name])[0]),
            "ci95": _interval(after[name] - before[name], len(np.unique(one.groups)) > 1),
        }
        for name in names
    }


def _predicted(name: str) -> str:
    return f"predicted_share/{name}"


def _true(name: str) -> str:
    return f"true_share/{name}"


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


def _means(metrics: Mapping[str, Float[np.ndarray, "..."]]) -> dict[str, Float[np.ndarray, " D"]]:
    return {name: values if values.ndim == 1 else values.mean(axis=(0, 1)) for name, values in metrics.items()}


def _stack(parts: Sequence[dict[str, Float[np.ndarray, " D"]]]) -> dict[str, Float[np.ndarray, " _"]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _interval(values: Float[np.ndarray, " _"], several: bool) -> list[float] | None:
    known = values[np.isfinite(values)]
    if not several or len(known) < RESAMPLES // 20:
        return None
    return [float(bound) for bound in np.percentile(known, PERCENTILES)]


def _std(values: Float[np.ndarray, " _"]) -> float | None:
    return _number(values.std(ddof=1)) if len(values) > 1 else None


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
