"""The curves of one split: how sure against how right, precision against recall, and ROC. Pure.

torch and torchmetrics are imported where they are used: that takes seconds, and who draws curves can do without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

CALIBRATION_BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True)
class Reliability:
    """How often the network is right, by how sure it is: of each of the bins that divide 0..1 evenly.

    A bin is [low, high) of the predicted class's probability; certainty, a probability of 1, counts in the last.

    Attributes:
        confidence: the mean probability of the predicted class; NaN where there is no video.
        accuracy: the share of the videos that are of the predicted class; NaN likewise.
        count: how many videos.
    """

    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    count: Int[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over the videos of their bin's |accuracy - confidence|."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return round(float(np.average(gaps, weights=self.count)), 6)


def reliability(
    probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"], bins: int = CALIBRATION_BINS
) -> Reliability:
    """What a reliability diagram shows, for the class that is predicted (Guo et al. 2017, fig. 1).

    Example:
        >>> found = reliability(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]), np.array([0, 1, 1]), bins=2)
        >>> found.confidence.round(2).tolist(), found.accuracy.round(2).tolist(), found.count.tolist(), found.error
        ([nan, 0.8], [nan, 0.67], [0, 3], 0.133333)
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # Sorted in single precision, as torchmetrics does, so that 0.6 of a float32 network and 0.6 are in the same bin.
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
    index = np.clip(np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        totals = np.bincount(index, weights=values, minlength=bins)
        return np.divide(totals, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(mean(confidence), mean(right), count)


@dataclass(frozen=True)
class Curve:
    """What one class' threshold trades, from the highest threshold (call nothing by this class) to the lowest.

    Attributes:
        x: recall, or the false positive rate of a ROC curve; never falls.
        y: precision, or the true positive rate.
        area: average precision, or the area under the ROC curve.
        support: how many videos are of the class.
        prevalence: their share: the precision of a network that knows nothing.
    """

    x: Float[np.ndarray, " P"]
    y: Float[np.ndarray, " P"]
    area: float
    support: int
    prevalence: float


def precision_recall_curves(
    probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"], classes: Sequence[str]
) -> dict[str, Curve | None]:
    """Precision against recall of each class; None for one without videos.

    Thresholds are the distinct probabilities, so a point is what some threshold does to these videos. Between two
    points there is no threshold, and no straight line either (Davis & Goadrich 2006, "The relationship between
    precision-recall and ROC curves"). The curve is the step that holds ``y[i]`` over ``(x[i-1], x[i]]``: the area
    below it is the average precision, the sum of (R_n - R_{n-1}) P_n. It begins at recall 0 and precision 1.

    Example:
        >>> p = np.array([[0.3, 0.7], [0.2, 0.8]])
        >>> curve = precision_recall_curves(p, np.array([1, 0]), ["a", "b"])["b"]
        >>> curve.x.tolist(), curve.y.tolist(), curve.area
        ([0.0, 0.0, 1.0], [1.0, 0.0, 0.5], 0.5)
    """
    from torchmetrics.functional.classification import binary_average_precision, binary_precision_recall_curve

    def trace(scores: Any, truth: Any) -> tuple[Any, Any, Any]:
        precision, recall, _ = binary_precision_recall_curve(scores, truth)  # from the lowest threshold on
        return recall.flip(0), precision.flip(0), binary_average_precision(scores, truth)

    return _each_class(probabilities, labels, classes, trace, lambda support, n: support > 0)


def roc_curves(
    probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"], classes: Sequence[str]
) -> dict[str, Curve | None]:
    """The true against the false positive rate of each class; None for one that no video is of, or all are.

    Points are joined by straight lines: what lies between two of them is reached by tossing a coin for videos that tie
    (Fawcett 2006, "An introduction to ROC analysis"). The mean area is `summarise`'s ``auroc``.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]])
        >>> curve = roc_curves(p, np.array([0, 1, 0]), ["a", "b"])["b"]
        >>> curve.x.tolist(), curve.y.tolist(), curve.area
        ([0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0], 0.5)
    """
    from torchmetrics.functional.classification import binary_auroc, binary_roc

    def trace(scores: Any, truth: Any) -> tuple[Any, Any, Any]:
        false, true, _ = binary_roc(scores, truth)
        return false, true, binary_auroc(scores, truth)

    return _each_class(probabilities, labels, classes, trace, lambda support, n: 0 < support < n)


def _each_class(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    trace: Callable[[Any, Any], tuple[Any, Any, Any]],
    defined: Callable[[int, int], bool],
) -> dict[str, Curve | None]:
    """The curve that ``trace`` gives, as tensors x, y and area, of each class against all others."""
    import torch

    rows = np.clip(probabilities.astype(np.float64), 0.0, 1.0)  # outside [0, 1] torchmetrics takes them as logits
    curves: dict[str, Curve | None] = {}
    for k, name in enumerate(classes):
        support, n = int((labels == k).sum()), len(labels)
        if not defined(support, n):
            curves[name] = None
            continue
        x, y, area = trace(torch.from_numpy(rows[:, k].copy()), torch.from_numpy(labels == k).int())
        # Six digits, as there is single precision inside.
        curves[name] = Curve(x.numpy(), y.numpy(), round(float(area), 6), support, support / n)
    return curves
