"""The 240 real clips as features of `experiment=strong` at one size, and a regression that takes milliseconds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.features.folds import C
from experiments.features.vectors import Vectors, vectors_of

HERE = Path(__file__).parent


def real_vectors() -> Vectors:
    """Standardised over all clips, without labels, and rotated into as many dimensions as there are clips."""
    data = vectors_of("multiscale_difference")
    u, s, _ = np.linalg.svd(StandardScaler().fit_transform(data.vectors), full_matrices=False)
    return Vectors(u * s, data.labels, data.cameras)


def predict(train: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """The probabilities [N, 2] of ``held_out``, with the C that experiments/features fixed."""
    found: np.ndarray = LogisticRegression(C=C, max_iter=2000).fit(train, labels).predict_proba(held_out)
    return found


def camera_weights(cameras: np.ndarray, draws: int = 2000) -> np.ndarray:
    """How often each clip is in resamples of the cameras [draws, N]."""
    number = np.unique(cameras, return_inverse=True)[1]
    count, generator = number.max() + 1, np.random.default_rng(0)
    return generator.multinomial(count, np.full(count, 1 / count), size=draws)[:, number]


def with_interval(point: float, draws: np.ndarray) -> str:
    """A figure with its 95 % interval."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{point:.3f} ({low:.3f} to {high:.3f})"
