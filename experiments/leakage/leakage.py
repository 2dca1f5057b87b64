"""How much does a random split flatter? The same clips, model and seeds, split at random and by camera.

Run it with ``VIDCLS_REAL_DATA=PATH python experiments/leakage/leakage.py``; see README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.sweeps import run_sweep
from experiments.tools import ROOT, needed_clips

SEEDS = 6


def main() -> None:
    """Runs both and writes results.csv (every run) and summary.csv."""
    clips = needed_clips()
    pooled = ROOT / "runs" / "studies" / "pooled.csv"
    pooled.parent.mkdir(parents=True, exist_ok=True)
    rows = [(path, path.parent.name) for path in sorted(clips.glob("*/*/*.mp4"))]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(pooled, index=False)
    folder = run_sweep(
        "leakage",
        "data=folder",
        f"data.source={pooled}",
        "data.split.grouped=false,true",
        "data.split.val_fraction=0.25",
        "data.split.test_fraction=0",
        "data.num_frames=8",
        f"seed=range(0,{SEEDS})",
    )
    found = []
    for grouped in (False, True):
        for seed in range(SEEDS):
            run = folder / f"grouped={grouped},seed={seed}"
            history, manifest = pd.read_csv(run / "history.csv"), pd.read_csv(run / "manifest.csv")
            train, val = (manifest[manifest["split"] == split] for split in ("train", "val"))
            found.append(
                {
                    "split": "by camera" if grouped else "random",
                    "seed": seed,
                    "n_val": len(val),
                    "val_of_known_cameras": val["creator"].isin(set(train["creator"])).mean(),
                    # After the last epoch: no epoch was chosen on these videos.
                    "last_accuracy": history["val/accuracy"].iloc[-1],
                    "best_accuracy": history["val/accuracy"][history["val/loss"].idxmin()],
                }
            )
    table = pd.DataFrame(found)
    summary = pd.DataFrame([_row(name, table[table["split"] == name]) for name in ("random", "by camera")])
    table.to_csv(Path(__file__).parent / "results.csv", index=False)
    summary.to_csv(Path(__file__).parent / "summary.csv", index=False)
    low, high = _interval(*(table[table["split"] == name]["last_accuracy"] for name in ("random", "by camera")))
    print(summary.to_string(index=False), f"difference of the means: 95 % interval {low:.3f} to {high:.3f}", sep="\n")


def _row(name: str, runs: pd.DataFrame) -> dict[str, object]:
    row: dict[str, object] = {"split": name, "runs": len(runs), "n_val": runs["n_val"].mean()}
    row["val_of_known_cameras"] = round(runs["val_of_known_cameras"].mean(), 3)
    for column in ("last_accuracy", "best_accuracy"):
        low, high = stats.t.interval(0.95, len(runs) - 1, runs[column].mean(), stats.sem(runs[column]))
        row[column] = f"{runs[column].mean():.3f} ({low:.3f} to {high:.3f})"
    return row


def _interval(one: pd.Series, other: pd.Series) -> tuple[float, float]:
    """Welch's 95 % interval of the difference of two means."""
    interval = stats.ttest_ind(np.asarray(one), np.asarray(other), equal_var=False).confidence_interval()
    return float(interval.low), float(interval.high)


if __name__ == "__main__":
    main()
