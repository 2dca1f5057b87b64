"""The figures of one split: what the network said against what is true, as a JSON-ready summary. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torchmetrics.functional.classification import binary_auroc, multiclass_confusion_matrix

from vidcls.metrics.curves import reliability


def summarise(
    probabilities: Float[np.ndarray, "N K"],
    labels: Int[np.ndarray, "N"],
    losses: Float[np.ndarray, "N"],
    classes: Sequence[str],
) -> dict[str, Any]:
    """The figures of one split, in plain Python types; what is undefined is None (JSON null), never NaN.

    A video is counted as its most probable class, the first of them at a tie. The keys:

    - ``accuracy``, ``n``, ``loss`` (mean over the videos; None where it is not finite).
    - ``per_class``: ``{name: {precision, recall, f1, support}}``, where 0/0 is 0: the precision of a class that is
      never predicted, the recall of one that the split does not hold.
    - ``macro_f1``: the mean of f1 over all K classes, those that are absent included: scikit-learn's
      ``f1_score(labels=range(K), average="macro", zero_division=0)``.
    - ``accuracy_ci95``: ``[low, high]``, the score interval of Wilson (1927), "Probable inference, the law of
      succession, and statistical inference". It takes videos to be independent; videos of one creator are not, so it
      is narrower than the truth.
    - ``confusion``: ``confusion[i][j]`` videos of class i were called class j.
    - ``auroc``: one-vs-rest, averaged over the classes for which it is defined (some videos in it, some not); None
      where there is no such class.
    - ``calibration_error``: the expected calibration error of the predicted class, in 15 bins (Guo et al. 2017, "On
      calibration of modern neural networks", eq. 3).

    Args:
        probabilities: each row sums to 1.
        labels: the true class of each video, in [0, K).
        losses: the loss of each video.
        classes: the K names, in the order of the columns.

    Raises:
        ValueError: no videos, shapes that do not match, labels out of range, rows that are not probabilities.

    Example:
        >>> figures = summarise(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]), np.array([0.1, 1.6]), ["a", "b"])
        >>> figures["accuracy"], figures["confusion"]
        (0.5, [[1, 0], [1, 0]])
    """
    check_predictions(probabilities, labels, losses, classes)
    probabilities = np.clip(
        probabilities.astype(np.float64), 0.0, 1.0
    )  # outside [0, 1] torchmetrics takes them as logits
    counts = _confusion(probabilities.argmax(axis=1), labels, len(classes))
    n, correct = len(labels), int(np.trace(counts))
    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    per_class = _per_class(counts, classes)
    loss = math.fsum(losses.tolist()) / n  # exact, so that it does not hang on the order of the videos (as under DDP)
    return {
        "accuracy": correct / n,
        "macro_f1": float(np.mean([row["f1"] for row in per_class.values()])),
        "loss": loss if math.isfinite(loss) else None,
        "n": n,
        "per_class": per_class,
        "accuracy_ci95": [float(interval.low), float(interval.high)],
        "confusion": counts.tolist(),
        "auroc": _auroc(probabilities, labels),
        "calibration_error": calibration_error(probabilities, labels),
    }


def calibration_error(probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"]) -> float:
    """The expected calibration error, as in `summarise`."""
    return reliability(probabilities, labels).error


def check_predictions(
    probabilities: Float[np.ndarray, "_ _"],
    labels: Int[np.ndarray, "_"],
    losses: Float[np.ndarray, "_"],
    classes: Sequence[str],
) -> None:
    """Refuses arrays that do not fit together, and rows that are not probabilities; arguments as for `summarise`.

    Raises:
        ValueError: see `summarise`.
    """
    n, k = len(labels), len(classes)
    if n == 0:
        raise ValueError("expected at least one video; got none, for which no figure is defined")
    if k < 2 or len(set(classes)) != k:
        raise ValueError(f"expected two or more different classes; got {list(classes)}")
    if probabilities.shape != (n, k) or losses.shape != (n,):
        raise ValueError(
            f"expected probabilities of shape ({n}, {k}) and losses of shape ({n},) for {n} labels and {k} classes; "
            f"got {probabilities.shape} and {losses.shape}"
        )
    if labels.min() < 0 or labels.max() >= k:
        raise ValueError(f"expected labels from 0 to {k - 1}; got {labels.min()} to {labels.max()}")
    if not np.isfinite(probabilities).all():
        raise ValueError(
            f"expected finite probabilities; {(~np.isfinite(probabilities)).any(axis=1).sum()} rows are not"
        )
    # 1e-2 leaves room for a softmax in bfloat16, and none for logits.
    sums = probabilities.sum(axis=1, dtype=np.float64)
    if probabilities.min() < -1e-2 or np.abs(sums - 1).max() > 1e-2:
        raise ValueError(
            f"expected rows of probabilities that sum to 1; got sums from {sums.min():g} to {sums.max():g}"
        )


def _confusion(predicted: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"], k: int) -> Int[np.ndarray, "K K"]:
    counts: np.ndarray = multiclass_confusion_matrix(_tensor(predicted), _tensor(labels), num_classes=k).numpy()
    return counts


def _per_class(counts: Int[np.ndarray, "K K"], classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1 = 2 TP / (truth + predicted), divided here because torchmetrics divides in float32."""
    hits, truth, predicted = counts.diagonal().tolist(), counts.sum(axis=1).tolist(), counts.sum(axis=0).tolist()
    return {
        name: {
            "precision": hit / max(said, 1),  # max: 0/0 is 0
            "recall": hit / max(support, 1),
            "f1": 2 * hit / max(support + said, 1),
            "support": support,
        }
        for name, hit, support, said in zip(classes, hits, truth, predicted, strict=True)
    }


def _auroc(probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"]) -> float | None:
    # Class by class: torchmetrics' multiclass_auroc counts a class without videos as 0 and pulls the mean down.
    defined = [k for k in range(probabilities.shape[1]) if 0 < (labels == k).sum() < len(labels)]
    areas = [float(binary_auroc(_tensor(probabilities[:, k]), _tensor(labels == k).int())) for k in defined]
    return round(math.fsum(areas) / len(areas), 6) if areas else None  # float32 inside: more digits are noise


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
