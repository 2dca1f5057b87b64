"""Which labels to buy: accuracy on held-out cameras against labels bought, for four ways to choose them.

Run it with ``VIDCLS_REAL_DATA=PATH python experiments/review/select_simulation.py``; see README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.features.folds import splits
from experiments.review.clips import HERE, camera_weights, predict, real_vectors, with_interval
from vidcls.metrics.label_selection import select_rows
from vidcls.training.reference import fit_reference

SEEDS, START, STEP, END = 20, 40, 20, 160
WAYS = {  # random share, diverse share; the rest is uncertain
    "random": (1.0, 0.0),
    "uncertainty": (0.0, 0.0),
    "diversity": (0.0, 1.0),
    "mixed (0.2 random, 0.4 diverse)": (0.2, 0.4),
}
BOUGHT = range(START, END + 1, STEP)


def main() -> None:
    """Writes select_simulation.csv."""
    data = real_vectors()
    right = {name: np.full((SEEDS, len(BOUGHT), len(data.labels)), np.nan) for name in WAYS}
    for seed in range(SEEDS):
        for pool, held_out in splits(data, "grouped", seed):
            vectors, labels = data.vectors[pool], data.labels[pool]
            first = np.random.default_rng(seed).permutation(len(pool))[:START]
            for name, (random_share, diverse_share) in WAYS.items():
                known = first
                for step in range(len(BOUGHT)):
                    rest = np.setdiff1d(np.arange(len(pool)), known)
                    both = np.concatenate([data.vectors[held_out], vectors[rest]])
                    probabilities = predict(vectors[known], labels[known], both)
                    found = probabilities[: len(held_out)].argmax(axis=1)
                    right[name][seed, step, held_out] = found == data.labels[held_out]
                    if step + 1 == len(BOUGHT):
                        break
                    reference = fit_reference(vectors[known], [])
                    chosen = select_rows(
                        probabilities[len(held_out) :],
                        (vectors[rest] - reference.mean) @ reference.components.T,
                        reference.vectors,
                        STEP,
                        random_share=random_share,
                        diverse_share=diverse_share,
                        seed=1000 * seed + step,
                    )
                    known = np.concatenate([known, rest[[one.row for one in chosen]]])
        print(seed, flush=True)
    weights = camera_weights(data.cameras)
    rows = []
    for step, labels_bought in enumerate(BOUGHT):
        row: dict[str, object] = {"labels": labels_bought}
        chance = right["random"][:, step].mean(axis=0)
        for name, found in right.items():
            mean = found[:, step].mean(axis=0)  # of each clip, over seeds
            row[name] = with_interval(mean.mean(), weights @ mean / weights.sum(axis=1))
            if name != "random":
                gain = mean - chance
                row[f"{name} - random"] = with_interval(gain.mean(), weights @ gain / weights.sum(axis=1))
        rows.append(row)
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "select_simulation.csv", index=False)
    print(table.to_markdown(index=False))


if __name__ == "__main__":
    main()
