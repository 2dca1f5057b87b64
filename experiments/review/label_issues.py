"""Are flipped labels found? Run it with ``VIDCLS_REAL_DATA=PATH python experiments/review/label_issues.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.features.folds import splits
from experiments.features.vectors import Vectors
from experiments.review.clips import HERE, camera_weights, predict, real_vectors, with_interval
from vidcls.metrics.label_issues import find_label_issues

SEEDS = 20
RATES = (0.05, 0.1)


def out_of_fold(data: Vectors, labels: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities [N, 2] by five folds that keep cameras apart, of networks that learn from ``labels``."""
    found = np.empty((len(labels), 2))
    given = Vectors(data.vectors, labels, data.cameras)
    for rows, held_out in splits(given, "grouped", seed):
        found[held_out] = predict(data.vectors[rows], labels[rows], data.vectors[held_out])
    return found


def main() -> None:
    """Writes label_issues.csv."""
    data, rows = real_vectors(), []
    weights, count = camera_weights(data.cameras), len(data.labels)
    for rate in RATES:
        wrong = round(rate * count)
        tops: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {}
        told = []
        for seed in range(SEEDS):
            flipped = np.zeros(count, bool)
            flipped[np.random.default_rng(seed).choice(count, wrong, replace=False)] = True
            labels = np.where(flipped, 1 - data.labels, data.labels)
            probabilities = out_of_fold(data, labels, seed)
            found = find_label_issues(probabilities, labels)
            of_label = probabilities[np.arange(count), labels]
            for k in (wrong // 2, wrong):
                for name, order in (("confident learning", found.ranked()), ("loss", np.argsort(of_label))):
                    top = np.asarray(order[:k])
                    tops.setdefault((name, k), []).append((top, flipped[top]))
            told.append([found.suspect.sum(), flipped[found.suspect].sum() / wrong, 1 - np.trace(found.joint)])
        for (name, k), of_seeds in tops.items():
            hits = np.array([hit.mean() for _, hit in of_seeds])
            drawn = sum(weights[:, top] @ hit for top, hit in of_seeds)
            total = sum(weights[:, top].sum(axis=1) for top, _ in of_seeds)
            rows.append([rate, wrong, name, k, with_interval(hits.mean(), drawn / total), hits.std(ddof=1), rate])
        suspects, recall, noise = np.mean(told, axis=0)
        print(f"{rate:.0%}: {suspects:.1f} suspects hold {recall:.2f} of the flipped; estimated noise {noise:.3f}")
    columns = ["flipped", "n", "ranking", "k", "precision at k", "sd over seeds", "chance"]
    table = pd.DataFrame(rows, columns=columns).round(3)
    table.to_csv(HERE / "label_issues.csv", index=False)
    print(table.to_markdown(index=False))


if __name__ == "__main__":
    main()
