"""Compares new videos with known ones, and estimates the accuracy on them without labels. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from vidcls.metrics.bootstrap import PERCENTILES, resample_groups, resample_videos
from vidcls.metrics.calibration import calibrate, fit_temperature

PERMUTATIONS = 999
SHARE_RESAMPLES = 2000
RESAMPLES = 200  # each of which fits a temperature
_ROWS = 64  # of the distance matrix at a time


def energy_test(
    new: Float[np.ndarray, "N D"],
    groups: Int[np.ndarray, " N"],
    known: Float[np.ndarray, "M D"],
    known_groups: Int[np.ndarray, " M"],
) -> tuple[float, float]:
    """The energy distance of two samples (Székely & Rizzo 2013), 2 E|X-Y| - E|X-X'| - E|Y-Y'|, and its p-value.

    Groups are permuted with all their videos, since those of one creator are similar. The p-value is the share of
    permutations with at least this distance, and at least 0.001.

    Example: two samples of two groups each. One permutation in three reproduces them.
        >>> distance, p = energy_test(np.array([[0.0], [0.0]]), np.array([0, 1]), np.ones((2, 1)), np.array([0, 1]))
        >>> distance, round(p, 1)
        (2.0, 0.3)
    """
    values = np.concatenate([new, known]).astype(np.float64)
    named = np.concatenate([np.stack([groups, 0 * groups]), np.stack([known_groups, 0 * known_groups + 1])], axis=1)
    group = np.unique(named, axis=1, return_inverse=True)[1].reshape(-1)
    order = np.argsort(group, kind="stable")
    values, starts = values[order], np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.bincount(group).astype(np.float64)
    rows = []
    for start in range(0, len(values), _ROWS):
        distances = np.linalg.norm(values[start : start + _ROWS, None] - values[None], axis=2)
        rows.append(np.add.reduceat(distances, starts, axis=1))
    between = np.add.reduceat(np.concatenate(rows), starts, axis=0)  # [G, G], summed over the videos of two groups
    is_new = np.isin(np.arange(len(sizes)), group[: len(new)]).astype(np.float64)
    generator = np.random.default_rng(0)
    drawn = np.stack([is_new, *(generator.permutation(is_new) for _ in range(PERMUTATIONS))])
    n = drawn @ sizes
    m = len(values) - n
    products = drawn @ between
    inside = (products * drawn).sum(axis=1)
    across = products.sum(axis=1) - inside
    distance = 2 * across / (n * m) - inside / n**2 - (between.sum() - inside - 2 * across) / m**2
    scaled = distance * n * m / (n + m)  # as permuted samples have other sizes
    p = (1 + (scaled[1:] >= scaled[0] * (1 - 1e-9)).sum()) / (1 + PERMUTATIONS)
    return float(distance[0]), float(p)


def estimate_accuracy(
    probabilities: Float[np.ndarray, "N K"],
    groups: Int[np.ndarray, " N"],
    known: Float[np.ndarray, "M K"],
    labels: Int[np.ndarray, " M"],
    known_groups: Int[np.ndarray, " M"],
    seed: int = 0,
) -> tuple[float, list[float]]:
    """The accuracy on N videos without their labels, with a 95 % interval: their mean calibrated confidence (CBPE).

    The temperature is fitted to M ``known`` predictions. The interval resamples the groups of both, and draws which
    videos are correct. Assumes that calibrated probabilities are calibrated on new videos too.
    """

    def confidence(known_weights: np.ndarray) -> Float[np.ndarray, " N"]:
        rows = np.repeat(np.arange(len(labels)), known_weights.astype(np.int64))
        return calibrate(probabilities, fit_temperature(known[rows], labels[rows])).max(axis=1)

    both = enumerate((groups, known_groups), seed)
    drawn = [np.concatenate(list(resample_videos(each, RESAMPLES, number))) for number, each in both]
    generator = np.random.default_rng(seed + 2)
    estimates = [
        np.average(generator.random(len(groups)) < confidence(of_known), weights=of_new)
        for of_new, of_known in zip(*drawn, strict=True)
    ]
    value = float(confidence(np.ones(len(labels))).mean())
    return value, [float(bound) for bound in np.percentile(estimates, PERCENTILES)]


def compare_shares(
    predicted: Int[np.ndarray, " N"],
    groups: Int[np.ndarray, " N"],
    reference: Int[np.ndarray, " M"],
    reference_groups: Int[np.ndarray, " M"],
    classes: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """For each class the share of N videos that are predicted as it, and its difference to that of M other videos.

    ``ci95`` are 95 % intervals of the difference for all K classes together (Bonferroni), the widest of three: from
    resampled groups, since videos of one creator are similar; from resampled videos, since the former are too narrow
    for few groups; and that of Agresti and Caffo (2000), since resamples of equal predictions do not vary. ``differs``
    if 0 is outside.
    """
    tail = 100 * 0.05 / 2 / max(len(classes) - 1, 1)
    drawn = [
        _shares(predicted, one, len(classes), 0) - _shares(reference, two, len(classes), 1)
        for one, two in ((groups, reference_groups), (np.arange(len(predicted)), np.arange(len(reference))))
    ]
    center, spread = _added_difference(predicted, reference, len(classes))
    reach = float(ndtri(1 - tail / 100)) * spread
    low = np.min([center - reach, *(np.percentile(difference, tail, axis=0) for difference in drawn)], axis=0)
    high = np.max([center + reach, *(np.percentile(difference, 100 - tail, axis=0) for difference in drawn)], axis=0)
    found = {}
    for k, name in enumerate(classes):
        share, other = float((predicted == k).mean()), float((reference == k).mean())
        interval = [float(low[k]), float(high[k])]
        found[name] = {"share": share, "reference": other, "difference": share - other, "ci95": interval}
        found[name]["differs"] = interval[0] > 0 or interval[1] < 0
    return found


def _added_difference(
    predicted: Int[np.ndarray, " N"], reference: Int[np.ndarray, " M"], num_classes: int
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """The difference of Agresti and Caffo, with one more success and failure in each sample, and its standard error."""
    sizes = np.array([len(predicted), len(reference)]) + 2
    counts = np.stack([np.bincount(one, minlength=num_classes) for one in (predicted, reference)])  # [2, K]
    shares = (counts + 1) / sizes[:, None]
    return shares[0] - shares[1], np.sqrt((shares * (1 - shares) / sizes[:, None]).sum(axis=0))


def _shares(
    predicted: Int[np.ndarray, " N"], groups: Int[np.ndarray, " N"], num_classes: int, seed: int
) -> Float[np.ndarray, "R K"]:
    """The share of each class in resamples of the groups."""
    group = np.unique(groups, return_inverse=True)[1]
    table = np.zeros((int(group.max()) + 1, num_classes))
    np.add.at(table, (group, predicted), 1)
    counts = np.concatenate([times @ table for times in resample_groups(len(table), SHARE_RESAMPLES, seed)])
    return counts / counts.sum(axis=1, keepdims=True)
