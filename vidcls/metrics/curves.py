"""Precision-recall and ROC curves of each class against all others, by scikit-learn. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Curve:
    """The curve of one class against all others, from the highest threshold to the lowest."""

    x: Float[np.ndarray, " P"]  # recall, or the false positive rate of a ROC curve; ascending
    y: Float[np.ndarray, " P"]  # precision, or the true positive rate
    area: float  # average precision, or the area under the ROC curve
    support: int  # the number of videos of the class
    prevalence: float  # their fraction, which is the precision of guessing


def precision_recall_curves(
    probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"], classes: Sequence[str]
) -> dict[str, Curve | None]:
    """Precision against recall of each class; None for one without videos.

    A step function: ``y[i]`` holds over ``(x[i-1], x[i]]``, and the area below it is the average precision. Points are
    not joined by straight lines (Davis & Goadrich 2006). It begins at recall 0 and precision 1.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve  # takes seconds

    curves: dict[str, Curve | None] = dict.fromkeys(classes)
    for k, name in enumerate(classes):
        truth, scores = labels == k, probabilities[:, k]
        if truth.any():
            precision, recall, _ = precision_recall_curve(truth, scores)  # from the lowest threshold on
            area = float(average_precision_score(truth, scores))
            curves[name] = Curve(recall[::-1], precision[::-1], area, int(truth.sum()), float(truth.mean()))
    return curves


def roc_curves(
    probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"], classes: Sequence[str]
) -> dict[str, Curve | None]:
    """The true against the false positive rate of each class; None if no video is of the class, or all are.

    Points are joined by straight lines (Fawcett 2006).
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # takes seconds

    curves: dict[str, Curve | None] = dict.fromkeys(classes)
    for k, name in enumerate(classes):
        truth, scores = labels == k, probabilities[:, k]
        if 0 < truth.sum() < len(truth):
            false_positives, true_positives, _ = roc_curve(truth, scores, drop_intermediate=False)
            area = float(roc_auc_score(truth, scores))
            curves[name] = Curve(false_positives, true_positives, area, int(truth.sum()), float(truth.mean()))
    return curves
