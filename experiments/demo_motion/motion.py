"""Is the class of a demo video in its motion only? cnn_lstm against the same network with a mean over the frames.

Run it with ``python experiments/demo_motion/motion.py``; see README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.seeds import run_seeds, write_tables
from experiments.tools import ROOT

SEEDS = range(3)


def main() -> None:
    """Runs all and writes results.csv and summary.csv."""
    scratch = ROOT / "runs" / "demo_motion"
    tables = [run_seeds(model, scratch, SEEDS, f"model={model}") for model in ("cnn_lstm", "cnn_mean")]
    write_tables(Path(__file__).parent, tables)


if __name__ == "__main__":
    main()
