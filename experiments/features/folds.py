"""Standardised logistic regression on clip vectors, by repeated folds; accuracy with intervals over cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from experiments.features.vectors import Vectors

C = 1e-3  # fixed beforehand
FOLDS = 5


def predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The probability of class 1 of each row of ``test``."""
    scaler = StandardScaler().fit(train)
    known, unknown = scaler.transform(train), scaler.transform(test)
    # The solution lies in the span of the rows: the same regression in as many dimensions as there are clips.
    u, s, v = np.linalg.svd(known, full_matrices=False)
    return LogisticRegression(C=C, max_iter=2000).fit(u * s, labels).predict_proba(unknown @ v.T)[:, 1]


def splits(data: Vectors, protocol: str, repeat: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and rows held out, of each fold; ``protocol`` is grouped (cameras apart) or random."""
    folds = StratifiedGroupKFold if protocol == "grouped" else StratifiedKFold
    return folds(FOLDS, shuffle=True, random_state=repeat).split(data.vectors, data.labels, data.cameras)


def out_of_fold(
    data: Vectors,
    protocol: str,
    repeats: int,
    choose: Callable[[np.ndarray, int], np.ndarray] = lambda rows, repeat: rows,
) -> np.ndarray:
    """Probabilities [repeats, N]; ``choose`` takes what to train on from a fold's rows."""
    found = np.full((repeats, len(data.labels)), np.nan)
    for repeat in range(repeats):
        for rows, held_out in splits(data, protocol, repeat):
            chosen = choose(rows, repeat)
            found[repeat, held_out] = predict(data.vectors[chosen], data.labels[chosen], data.vectors[held_out])
    return found


def accuracy(data: Vectors, probabilities: np.ndarray) -> tuple[float, float, float]:
    """Of all repeats, with the 95 % interval of resampled cameras."""
    right = ((probabilities > 0.5) == data.labels).mean(axis=0)  # [N]
    cameras = [right[data.cameras == camera] for camera in np.unique(data.cameras)]
    generator = np.random.default_rng(0)
    draws = [
        np.concatenate([cameras[place] for place in generator.integers(len(cameras), size=len(cameras))]).mean()
        for _ in range(2000)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(right.mean()), float(low), float(high)


def auc(data: Vectors, probabilities: np.ndarray) -> float:
    """The mean of the repeats."""
    return float(np.mean([roc_auc_score(data.labels, row) for row in probabilities]))
