"""The metrics of one split, as a JSON-ready summary. Pure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vidcls.metrics.calibration import reliability


def summarise(
    probabilities: Float[np.ndarray, "N K"],
    labels: Int[np.ndarray, "N"],
    losses: Float[np.ndarray, "N"],
    classes: Sequence[str],
) -> dict[str, Any]:
    """The metrics of one split, in plain Python types; what is undefined is None (JSON null), never NaN.

    A video's predicted class is its most probable one; ties go to the first. ``macro_f1`` averages over all K classes,
    absent ones included, with 0/0 = 0; ``auroc`` over the classes that have both positive and negative videos.
    ``accuracy_ci95`` is a lower bound on the uncertainty, as it assumes independent videos. ``confusion[i][j]`` videos
    of class i were predicted as class j.

    Raises:
        ValueError: no videos, shapes that do not match, labels out of range, rows that are not probabilities.
    """
    # Takes seconds, which callers of `check_predictions` need not spend.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

    check_predictions(probabilities, labels, losses, classes)
    probabilities = np.clip(probabilities.astype(np.float64), 0.0, 1.0)
    predicted, every, n = probabilities.argmax(axis=1), range(len(classes)), len(labels)
    counts = confusion_matrix(labels, predicted, labels=every)
    correct = int(np.trace(counts))
    *table, _ = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0.0)
    columns = [*(column.tolist() for column in table), counts.sum(axis=1).tolist()]
    names = ("precision", "recall", "f1", "support")
    per_class = {name: dict(zip(names, values, strict=True)) for name, *values in zip(classes, *columns, strict=True)}
    defined = [k for k in every if 0 < (labels == k).sum() < n]
    areas = [float(roc_auc_score(labels == k, probabilities[:, k])) for k in defined]
    loss = math.fsum(losses.tolist()) / n  # exact, so that it does not depend on the order of the videos, as under DDP
    return {
        "accuracy": correct / n,
        "macro_f1": float(np.mean([row["f1"] for row in per_class.values()])),
        "loss": loss if math.isfinite(loss) else None,
        "n": n,
        "per_class": per_class,
        "accuracy_ci95": wilson_interval(correct, n),
        "confusion": counts.tolist(),
        "auroc": round(math.fsum(areas) / len(areas), 6) if areas else None,
        "calibration_error": reliability(probabilities, labels).error,
    }


def wilson_interval(count: int, of: int) -> list[float]:
    """Wilson's 95 % score interval (1927) of a proportion."""
    from scipy.stats import binomtest  # takes seconds

    interval = binomtest(count, of).proportion_ci(confidence_level=0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def check_predictions(
    probabilities: Float[np.ndarray, "_ _"],
    labels: Int[np.ndarray, "_"],
    losses: Float[np.ndarray, "_"],
    classes: Sequence[str],
) -> None:
    """Raises ValueError for arrays of different sizes, labels out of range and rows that are not probabilities."""
    n, k = len(labels), len(classes)
    if n == 0:
        raise ValueError("expected at least one video; got none, for which no metric is defined")
    if k < 2 or len(set(classes)) != k:
        raise ValueError(f"expected two or more different classes; got {list(classes)}")
    if probabilities.shape != (n, k) or losses.shape != (n,):
        shapes = f"{probabilities.shape} and {losses.shape}"
        raise ValueError(f"expected probabilities of shape {(n, k)} and losses of shape {(n,)}; got {shapes}")
    if labels.min() < 0 or labels.max() >= k:
        raise ValueError(f"expected labels from 0 to {k - 1}; got {labels.min()} to {labels.max()}")
    if not np.isfinite(probabilities).all():
        rows = (~np.isfinite(probabilities)).any(axis=1).sum()
        raise ValueError(f"expected finite probabilities; {rows} rows are not")
    # 1e-2 leaves room for a softmax in bfloat16, and none for logits.
    sums = probabilities.sum(axis=1, dtype=np.float64)
    if probabilities.min() < -1e-2 or np.abs(sums - 1).max() > 1e-2:
        got = f"sums from {sums.min():g} to {sums.max():g}"
        raise ValueError(f"expected rows of probabilities that sum to 1; got {got}")
