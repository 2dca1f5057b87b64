"""The predictions of a network for every video of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from vidcls.metrics.classification import summarise

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """The predictions for every video of a split, in the split's order."""

    labels: Int[np.ndarray, " N"]  # the true classes
    probabilities: Float[np.ndarray, "N K"]  # rows sum to 1
    losses: Float[np.ndarray, " N"]  # cross-entropy in nats, without class weights and smoothing, so that runs compare

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

    def last(self, count: int) -> Predictions:
        return Predictions(**{name: values[len(values) - count :] for name, values in vars(self).items()})

    def tensors(self) -> dict[str, Tensor]:
        """The attributes as tensors, for checkpoints."""
        import torch

        return {name: torch.from_numpy(values) for name, values in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Predictions:
        """The inverse of `tensors`."""
        return cls(**{name: values.numpy() for name, values in tensors.items()})
