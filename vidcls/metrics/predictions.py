"""What a network predicts for every video of a split, and all that is measured of it, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from vidcls.metrics.calibration import Reliability, reliability
from vidcls.metrics.classification import summarise
from vidcls.metrics.curves import Curve, precision_recall_curves, roc_curves

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """The predictions for every video of a split, in the split's order.

    Attributes:
        labels: the true classes.
        probabilities: rows sum to 1.
        losses: plain cross-entropy, in nats: no class weights, no smoothing, so that runs compare.
    """

    labels: Int[np.ndarray, " N"]
    probabilities: Float[np.ndarray, "N K"]
    losses: Float[np.ndarray, " N"]

    @property
    def predicted(self) -> Int[np.ndarray, " N"]:
        """The most probable class of each video."""
        return self.probabilities.argmax(axis=1)

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """The split's metrics, see `vidcls.metrics.classification.summarise`."""
        return summarise(self.probabilities, self.labels, self.losses, classes)

    def worst_errors(self, limit: int | None = None) -> list[int]:
        """The rows of the wrongly classified videos, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        confidence = self.probabilities[wrong, self.predicted[wrong]]
        return [int(row) for row in wrong[np.argsort(-confidence, kind="stable")][:limit]]

    def tensors(self) -> dict[str, Tensor]:
        """The attributes as a checkpoint can hold them."""
        import torch  # for checkpoints alone

        return {name: torch.from_numpy(values) for name, values in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Predictions:
        """The inverse of `tensors`."""
        return cls(**{name: values.numpy() for name, values in tensors.items()})


@dataclass(frozen=True)
class SplitSummary:
    """Everything that is measured of a split's predictions.

    Attributes:
        metrics: see `vidcls.metrics.classification.summarise`.
        reliability: confidence against accuracy.
        precision_recall: a curve per class, None where it is not defined.
        roc: likewise.
    """

    metrics: dict[str, Any]
    reliability: Reliability
    precision_recall: dict[str, Curve | None]
    roc: dict[str, Curve | None]


def summarise_split(predictions: Predictions, classes: Sequence[str]) -> SplitSummary:
    """Measures a split once, for all that is written, plotted and printed of it."""
    given = (predictions.probabilities, predictions.labels)
    return SplitSummary(
        predictions.summary(classes),
        reliability(*given),
        precision_recall_curves(*given, classes),
        roc_curves(*given, classes),
    )
