"""Thresholds for a recall or a precision, with 95 % confidence on future videos. Pure; see docs/policy.md."""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from vidcls.errors import UserError

CONFIDENCE = 0.95  # of every lower bound, one-sided


def review_threshold(
    scores: Float[np.ndarray, "N"], positives: Bool[np.ndarray, "N"], recall: float, *, name: str, split: str = "val"
) -> float:
    """The highest threshold with P(score >= threshold) >= ``recall`` for the class ``name``.

    An order statistic of the positives' scores (Wilks 1941), so the confidence holds for any distribution of scores.

    Raises:
        UserError: too few positives: even if none is missed, n >= log(0.05) / log(recall) are needed.
    """
    n = int(positives.sum())
    enough = np.flatnonzero(lower_bound(np.arange(1, n + 1), n) >= recall)
    if len(enough) == 0:
        best = (1 - CONFIDENCE) ** (1 / n) if n else 0.0
        raise _not_supported(name, split, "recall", recall, "with none of them missed", str(n), best)
    return float(np.sort(scores[positives])[::-1][enough[0]])


def block_threshold(
    scores: Float[np.ndarray, "N"], positives: Bool[np.ndarray, "N"], precision: float, *, name: str, split: str = "val"
) -> float:
    """The lowest score whose lower bound of the precision (Clopper and Pearson 1934) is at least ``precision``.

    Raises:
        UserError: there is none, with too few videos of the class, or too many others that score as high.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positives[order])
    bounds = lower_bound(hits, np.arange(1, len(scores) + 1))
    bounds[:-1][ranked[:-1] == ranked[1:]] = 0.0  # ties are blocked together: only the last one counts them all
    passing = np.flatnonzero(bounds >= precision)
    if len(passing) == 0:
        best = float(bounds.max(initial=0.0))
        got = f"{int(positives.sum())}, and no threshold with a bound above {best:.3f}"
        raise _not_supported(name, split, "precision", precision, "all of which score above all others", got, best)
    return float(ranked[passing[-1]])


def lower_bound(hits: Int[np.ndarray, "N"], n: Int[np.ndarray, "N"] | int) -> Float[np.ndarray, "N"]:
    """Clopper and Pearson's one-sided lower bound of a proportion, from ``hits`` in ``n``; 0 without a hit."""
    from scipy.stats import beta  # takes a second, which predict.py need not spend

    return np.where(hits > 0, beta.ppf(1 - CONFIDENCE, np.maximum(hits, 1), n - hits + 1), 0.0)


def _not_supported(
    name: str, split: str, metric: str, target: float, condition: str, got: str, best: float
) -> UserError:
    needed = math.ceil(math.log(1 - CONFIDENCE) / math.log(target))
    supported = math.floor(best * 1000) / 1000  # what these videos support, rounded down
    option = f"policy.target.{name}.{metric}"
    return UserError(
        f"at least {needed} {split} videos of {name!r}, {condition}, for {option}={target:g} at 95 % confidence",
        got,
        f"Add {split} videos of {name!r}" + (f", or set {option}={supported:g} or less." if supported else "."),
        f"{metric}-not-supported",
    )
