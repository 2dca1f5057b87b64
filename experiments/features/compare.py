"""Which input generalises to unseen cameras, how much random folds promise, and what more cameras would give.

Run it with ``VIDCLS_REAL_DATA=PATH python experiments/features/compare.py [NAME ...]``; see README.md.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.features.folds import accuracy, auc, out_of_fold, splits
from experiments.features.vectors import SETTINGS, Vectors, vectors_of

HERE = Path(__file__).parent
REPEATS = 3
CURVE_REPEATS = 10
CAMERAS = (4, 8, 12, 16, 20, 24, 28)


def compare(names: list[str]) -> pd.DataFrame:
    """A row per setting and protocol."""
    rows = []
    for name in names:
        data = vectors_of(name)
        for protocol in ("grouped", "random"):
            found = out_of_fold(data, protocol, REPEATS)
            mean, low, high = accuracy(data, found)
            rows.append([name, protocol, len(data.labels), mean, low, high, auc(data, found)])
            print(rows[-1], flush=True)
    return pd.DataFrame(rows, columns=["setting", "protocol", "n", "accuracy", "low", "high", "auc"])


def clips_of_cameras(data: Vectors, count: int, fold: np.ndarray, repeat: int) -> np.ndarray:
    """Those rows of a fold that show one of ``count`` of its cameras, drawn at random."""
    cameras = np.random.default_rng(repeat).permutation(np.unique(data.cameras[fold]))[:count]
    return fold[np.isin(data.cameras[fold], cameras)]


def learning_curve(data: Vectors) -> pd.DataFrame:
    """Out-of-fold accuracy when only so many of a fold's cameras are trained on; the last row is all of them."""
    rows = []
    for count in (*CAMERAS, len(set(data.cameras))):
        choose = partial(clips_of_cameras, data, count)
        found = out_of_fold(data, "grouped", CURVE_REPEATS, choose)
        known = [choose(fold, r) for r in range(CURVE_REPEATS) for fold, _ in splits(data, "grouped", r)]
        sizes = np.mean([(len(set(data.cameras[chosen])), len(chosen)) for chosen in known], axis=0)
        rows.append([*sizes, *accuracy(data, found)])
    return pd.DataFrame(rows, columns=["cameras", "clips", "accuracy", "low", "high"])


def cameras_needed(curve: pd.DataFrame, target: float) -> float:
    """Extrapolated: where error = a * cameras^-b, fitted to the curve, falls to 1 - target."""
    slope, intercept = np.polyfit(np.log(curve["cameras"]), np.log(1 - curve["accuracy"]), 1)
    return float(np.exp((np.log(1 - target) - intercept) / slope))


def main(names: list[str]) -> None:
    """Writes comparison.csv and learning_curve.csv."""
    compare(names or list(SETTINGS)).round(4).to_csv(HERE / "comparison.csv", index=False)
    curve = learning_curve(vectors_of("multiscale_difference"))
    curve.round(4).to_csv(HERE / "learning_curve.csv", index=False)
    print(curve.to_string(index=False))
    for target in (0.88, 0.92):
        print(f"{target}: {cameras_needed(curve, target):.0f} cameras, extrapolated")


if __name__ == "__main__":
    main(sys.argv[1:])
