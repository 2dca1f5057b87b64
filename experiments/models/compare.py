"""How good is each setting on cameras it has not seen? Trained on the 200 clips, the 40 of val.

Run it with ``VIDCLS_REAL_DATA=PATH python experiments/models/compare.py``; see README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.models.settings import FROZEN, STUDY, TRAINED, begin, last_epoch
from experiments.tools import mean_over_seeds


def main() -> None:
    """Trains all and writes seeds.csv and comparison.csv."""
    clips = begin()
    rows = []
    for place, (name, overrides) in enumerate({**FROZEN, **TRAINED}.items()):
        for seed in range(5):
            rows.append(last_epoch(name, overrides, clips, STUDY / f"compare_{place}_seed{seed}", seed))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).parent / "seeds.csv", index=False)
    comparison = table.groupby("name", sort=False)["val_accuracy"].agg(mean_over_seeds)
    comparison.to_csv(Path(__file__).parent / "comparison.csv")
    print(comparison.to_string())


if __name__ == "__main__":
    main()
