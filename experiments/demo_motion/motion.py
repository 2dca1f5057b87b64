"""Is the class of a demo video in its motion only? cnn_lstm against the same network with a mean over the frames.

Run it with ``python experiments/demo_motion/motion.py``; see README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.seeds import mean_and_spread, run_seeds
from experiments.tools import ROOT, machine

SEEDS = range(3)


def main() -> None:
    """Runs all and writes results.csv and summary.csv."""
    scratch = ROOT / "runs" / "demo_motion"
    table = pd.concat(
        [run_seeds(model, scratch, SEEDS, f"model={model}") for model in ("cnn_lstm", "cnn_mean")], ignore_index=True
    )
    here = Path(__file__).parent
    table.to_csv(here / "results.csv", index=False)
    mean_and_spread(table).to_csv(here / "summary.csv")
    print(machine())
    print(table.to_string(index=False))
    print(mean_and_spread(table).to_string())


if __name__ == "__main__":
    main()
