"""A policy, and predictions to fit one to."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest

from vidcls.moderation.policy import Policy

CLASSES = ("safe", "harmful", "adult")
MODEL = "0123456789ab"


def policy(**changes: Any) -> Policy:
    content: dict[str, Any] = {
        "model": MODEL,
        "classes": CLASSES,
        "safe_class": "safe",
        "temperature": 1.0,
        "review": {"harmful": 0.25, "adult": 0.5},
        "block": {"harmful": 0.75, "adult": 0.875},
        "targets": {"harmful": {"recall": 0.95}},
        "support": {"safe": 9, "harmful": 60, "adult": 3},
        "calibration_error": {"before": 0.1, "after": 0.05},
    }
    return Policy(**{**content, **changes})


@cache
def bound(hits: int, n: int) -> float:
    """The lower bound, by scipy's own implementation."""
    return binomtest(hits, n, alternative="greater").proportion_ci(0.95, method="exact").low


def draw(n: int, separation: float, seed: int, k: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a network that is right as often as it says, and the labels."""
    rng = np.random.default_rng(seed)
    probabilities = softmax(separation * rng.normal(size=(n, k)), axis=1)
    labels = np.array([rng.choice(k, p=row) for row in probabilities])
    return probabilities, labels
