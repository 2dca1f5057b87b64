"""Selects videos to label: random, uncertain and diverse ones. Pure."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RANDOM, UNCERTAIN, DIVERSE = REASONS = ("random", "uncertain", "diverse")


class Selected(NamedTuple):
    """A selected video."""

    row: int
    reason: str  # one of `REASONS`
    score: float  # 0 if random; the uncertainty; or if diverse, the uncertainty times the squared distance


def uncertainty(probabilities: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    """1 minus the margin between the two highest probabilities.

    >>> uncertainty(np.array([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]])).round(3).tolist()
    [1.0, 0.2]
    """
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return 1 - (first - second)


def select_rows(
    probabilities: Float[np.ndarray, "N K"],
    vectors: Float[np.ndarray, "N P"],
    known: Float[np.ndarray, "M P"],
    count: int,
    *,
    random_share: float | int,
    diverse_share: float | int,
    seed: int,
) -> list[Selected]:
    """Chooses ``count`` of N videos, first the random ones, then the most uncertain, then diverse ones.

    The random ones are a fair sample of all N. Diverse ones are drawn as in k-means++ (Arthur & Vassilvitskii 2007),
    with a probability proportional to the uncertainty times the squared distance of the clip vector to the nearest of
    ``known`` and chosen ones. Without clip vectors (P = 0) the most uncertain take their place.
    """
    generator, total = np.random.default_rng(seed), len(probabilities)
    count = min(count, total)
    num_random = round(count * random_share)
    num_diverse = min(round(count * diverse_share), count - num_random) if vectors.shape[1] else 0
    unsure = uncertainty(probabilities)
    chosen = [Selected(int(row), RANDOM, 0.0) for row in generator.permutation(total)[:num_random]]
    free = np.ones(total, bool)
    free[[one.row for one in chosen]] = False
    ranked = [row for row in np.argsort(-unsure, kind="stable") if free[row]]
    for row in ranked[: count - num_random - num_diverse]:
        chosen.append(Selected(int(row), UNCERTAIN, float(unsure[row])))
        free[row] = False
    distances = np.full(total, np.inf)
    for vector in [*known, *vectors[~free]] if num_diverse else ():
        distances = np.minimum(distances, np.square(vectors - vector).sum(axis=1))
    for _ in range(num_diverse):
        scores = np.where(free, np.where(np.isinf(distances), 1.0, distances) * unsure, 0.0)
        weights = scores if scores.sum() > 0 else free.astype(np.float64)  # if all are copies of known videos
        row = int(generator.choice(total, p=weights / weights.sum()))
        chosen.append(Selected(row, DIVERSE, float(scores[row])))
        free[row] = False
        distances = np.minimum(distances, np.square(vectors - vectors[row]).sum(axis=1))
    return chosen
