"""What a network predicts for every video of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidcls.metrics.classification import summarise


@dataclass(frozen=True)
class Predictions:
    """What a network says of every video of a split, in the split's order.

    Attributes:
        labels: the true classes.
        probabilities: rows sum to 1.
        losses: plain cross-entropy of these, in nats: no class weights, no smoothing, so that runs compare.
    """

    labels: Int[np.ndarray, " N"]
    probabilities: Float[np.ndarray, "N K"]
    losses: Float[np.ndarray, " N"]

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """The split's figures, see `vidcls.metrics.classification.summarise`."""
        return summarise(self.probabilities, self.labels, self.losses, classes)

    def tensors(self) -> dict[str, Tensor]:
        """The attributes as a checkpoint can hold them."""
        return {name: torch.from_numpy(values) for name, values in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Predictions:
        """The inverse of `tensors`."""
        return cls(**{name: values.numpy() for name, values in tensors.items()})
