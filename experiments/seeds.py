"""Runs ``python train.py`` once per seed and gathers what the runs say; finished runs are not run again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from experiments.tools import ROOT, machine


def run_seeds(name: str, folder: Path, seeds: range, *overrides: str) -> pd.DataFrame:
    """Trains with each seed in ``folder``/<name>_seed<n>.

    Returns:
        One row per run: name, seed, ``epochs_accuracy`` (the last epoch's running training accuracy, as Keras reports
        it), ``last_val_accuracy`` (after the last epoch) and, of the best epoch by validation loss, ``best_epoch`` and
        ``<split>_accuracy``; ``epoch_seconds``.
    """
    rows = []
    for seed in seeds:
        run_dir = folder / f"{name}_seed{seed}"
        if not (run_dir / "metrics.json").exists():
            how = [f"resume={run_dir}"] if (run_dir / "config.yaml").exists() else [f"run_dir={run_dir}", *overrides]
            seeded = [] if how[0].startswith("resume") else [f"seed={seed}"]
            subprocess.run([sys.executable, "train.py", *how, *seeded], check=True, cwd=ROOT)
        metrics = json.loads((run_dir / "metrics.json").read_text())
        history = pd.read_csv(run_dir / "history.csv")
        rows.append(
            {
                "name": name,
                "seed": seed,
                "epochs_accuracy": history["train/accuracy"].iloc[-1],
                "last_val_accuracy": history["val/accuracy"].iloc[-1],
                "best_epoch": int(history["epoch"][history["val/loss"].idxmin()]),
                **{f"{s}_accuracy": metrics[s]["accuracy"] for s in ("train", "val", "test") if metrics[s]},
                "epoch_seconds": metrics["timing"]["epoch_seconds"],
            }
        )
    return pd.DataFrame(rows)


def write_tables(folder: Path, tables: list[pd.DataFrame]) -> None:
    """Writes results.csv (every run) and summary.csv (mean and standard deviation over the seeds), and prints both."""
    table = pd.concat(tables, ignore_index=True)
    summary = table.drop(columns="seed").groupby("name", sort=False).agg(["mean", "std"]).round(3)
    table.to_csv(folder / "results.csv", index=False)
    summary.to_csv(folder / "summary.csv")
    print(machine(), table.to_string(index=False), summary.to_string(), sep="\n")
