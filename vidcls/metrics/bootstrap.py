"""Confidence intervals for videos that come in groups, such as creators. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vidcls.metrics.classification import check_predictions

PERCENTILES = (2.5, 97.5)
MIN_RESAMPLES = 100  # for percentiles
_DRAWS_AT_ONCE = 2**20  # 8 MiB of float64


def bootstrap_intervals(
    probabilities: Float[np.ndarray, "N K"],
    labels: Int[np.ndarray, "N"],
    losses: Float[np.ndarray, "N"],
    groups: Int[np.ndarray, "N"],
    classes: Sequence[str],
    *,
    unit: str,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """95 % intervals of the metrics of `vidcls.metrics.classification.summarise`, JSON-ready; ``unit`` names a group.

    The cluster bootstrap (Field & Welsh 2007) with percentile intervals (Efron & Tibshirani 1993, section 13.3): the G
    groups are resampled with replacement, each with all its videos. All are None if G < 2, and too narrow for small G
    (Cameron, Gelbach & Miller 2008). The recall of a class ignores resamples without videos of it, and is None if fewer
    than 100 remain; elsewhere 0/0 is 0.

    Raises:
        ValueError: as in `vidcls.metrics.classification.summarise`.
    """
    check_predictions(probabilities, labels, losses, classes)
    k, finite = len(classes), bool(np.isfinite(losses).all())
    predicted = probabilities.argmax(axis=1)
    numbers, group = np.unique(groups, return_inverse=True)
    # For each group: the diagonal and the margins of its confusion matrix, and the sum of losses.
    table = np.zeros((len(numbers), 3 * k + 1))  # [G, 3K + 1]
    correct = predicted == labels
    np.add.at(table, (group[correct], labels[correct]), 1)
    np.add.at(table, (group, k + labels), 1)
    np.add.at(table, (group, 2 * k + predicted), 1)
    np.add.at(table[:, -1], group, losses if finite else 0)
    drawn = np.concatenate([times @ table for times in resample_groups(len(numbers), resamples, seed)])
    hits, truth, predicted_counts = (drawn[:, i * k : (i + 1) * k] for i in range(3))  # [resamples, K] each
    n = truth.sum(axis=1)
    f1 = 2 * hits / np.maximum(truth + predicted_counts, 1)  # max: 0/0 is 0
    precision, recall = hits / np.maximum(predicted_counts, 1), hits / np.maximum(truth, 1)
    enough = len(numbers) >= 2
    return {
        "unit": unit,
        "units": len(numbers),
        "resamples": resamples,
        "seed": seed,
        "accuracy": percentile_interval(hits.sum(axis=1) / n, enough),
        "macro_f1": percentile_interval(f1.mean(axis=1), enough),
        "loss": percentile_interval(drawn[:, -1] / n, enough and finite),
        "per_class": {
            name: {
                "precision": percentile_interval(precision[:, i], enough),
                "recall": percentile_interval(recall[truth[:, i] > 0, i], enough),
                "f1": percentile_interval(f1[:, i], enough),
            }
            for i, name in enumerate(classes)
        },
    }


def resample_groups(
    num_groups: int, resamples: int, seed: int, columns: int = 1
) -> Iterator[Float[np.ndarray, "_R G"]]:
    """How often each resample holds each group, in chunks; faster than `Generator.multinomial`.

    Chunks are smaller if the caller derives arrays with more ``columns`` from them.
    """
    generator = np.random.default_rng(seed)
    at_once = max(_DRAWS_AT_ONCE // max(num_groups, columns), 1)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(num_groups, size=(rows, num_groups))
        drawn += np.arange(rows)[:, None] * num_groups
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def resample_videos(groups: Int[np.ndarray, " N"], resamples: int, seed: int) -> Iterator[Float[np.ndarray, "_R N"]]:
    """How often each resample of the groups holds each video, in chunks of resamples."""
    group = np.unique(groups, return_inverse=True)[1]
    for times in resample_groups(int(group.max()) + 1, resamples, seed, columns=len(group)):
        yield times[:, group]


def percentile_interval(values: Float[np.ndarray, " _"], defined: bool = True) -> list[float] | None:
    """The 95 % interval of resampled values; None unless it is ``defined``, and enough of them are finite."""
    known = values[np.isfinite(values)]
    if not defined or len(known) < MIN_RESAMPLES:
        return None
    return [float(bound) for bound in np.percentile(known, PERCENTILES)]
