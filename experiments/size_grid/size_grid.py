"""How many frames, how large, how much memory: a grid on the demo videos, and a smaller one on real clips.

Run it with ``python experiments/size_grid/size_grid.py``; see README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.sweeps import keep_report, run_sweep
from experiments.tools import real_clips

SEEDS = "seed=0,1,2"
DEMO = ["data.num_frames=5,10,20", "data.resolution=32,64", "model.lstm.hidden_size=16,64"]
REAL = ["data.num_frames=8,16", "data.resolution=32,64", "model.lstm.hidden_size=16,64"]


def main() -> None:
    """Runs both grids and keeps their reports; the real clips only where VIDCLS_REAL_DATA names them."""
    here = Path(__file__).parent
    keep_report(run_sweep("size_grid_demo", *DEMO, SEEDS), here, "demo")
    clips = real_clips()
    if clips is not None:
        source = ["data=folder", f"data.source={clips}"]
        keep_report(run_sweep("size_grid_fights", *REAL, SEEDS, *source), here, "fights")


if __name__ == "__main__":
    main()
