"""Whether videos are like others that are known, and how accurate predictions of them are, without labels. Pure."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from vidcls.metrics.bootstrap import PERCENTILES, resample_groups
from vidcls.metrics.calibration import calibrate, fit_temperature

PERMUTATIONS = 999
RESAMPLES = 200  # each of which fits a temperature
_ROWS = 64  # of distances at once


def energy_test(
    new: Float[np.ndarray, "N D"],
    groups: Int[np.ndarray, " N"],
    known: Float[np.ndarray, "M D"],
    known_groups: Int[np.ndarray, " M"],
    seed: int = 0,
) -> tuple[float, float]:
    """The energy distance of two samples (Székely & Rizzo 2013), 2 E|X-Y| - E|X-X'| - E|Y-Y'|, and its p-value.

    Groups are permuted with all their videos, since those of one creator are alike. The p-value is the share of
    permutations that are as far apart, and at least 0.001.

    Example: two samples of two groups each. One permutation in three puts them together as they are.
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
    generator = np.random.default_rng(seed)
    drawn = np.stack([is_new, *(generator.permutation(is_new) for _ in range(PERMUTATIONS))])
    n = drawn @ sizes
    m = len(values) - n
    products = drawn @ between
    inside = (products * drawn).sum(axis=1)
    across = products.sum(axis=1) - inside
    distance = 2 * across / (n * m) - inside / n**2 - (between.sum() - inside - 2 * across) / m**2
    scaled = distance * n * m / (n + m)  # of samples of other sizes
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

    The temperature is fitted to M ``known`` predictions. The interval resamples the groups of both, as that is
    estimated too, and draws which of the videos are right. It assumes that a calibrated probability means on new
    videos what it meant on known ones.
    """

    def confidence(known_weights: np.ndarray) -> Float[np.ndarray, " N"]:
        rows = np.repeat(np.arange(len(labels)), known_weights.astype(np.int64))
        highest: np.ndarray = calibrate(probabilities, fit_temperature(known[rows], labels[rows])).max(axis=1)
        return highest

    drawn = []
    for of in (groups, known_groups):
        group = np.unique(of, return_inverse=True)[1]
        times = np.concatenate(list(resample_groups(int(group.max()) + 1, RESAMPLES, seed, columns=len(group))))
        drawn.append(times[:, group])
        seed += 1
    generator = np.random.default_rng(seed)
    estimates = [
        np.average(generator.random(len(groups)) < confidence(of_known), weights=of_new)
        for of_new, of_known in zip(*drawn, strict=True)
    ]
    value = float(confidence(np.ones(len(labels))).mean())
    return value, [float(bound) for bound in np.percentile(estimates, PERCENTILES)]
