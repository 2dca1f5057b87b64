"""Runs ``python train.py -m`` and ``python report.py`` for a study, and keeps what a README shows of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.tools import ROOT


def run_sweep(name: str, *overrides: str) -> Path:
    """The folder of a finished sweep, runs/studies/<name>; what is done of it is not run again."""
    folder = ROOT / "runs" / "studies" / name
    more = [f"sweep.resume={folder}"] if (folder / "sweep.json").exists() else []
    # Two jobs of one thread each get more done on two cores than one job of two threads: the networks are small.
    how = ["hydra/launcher=parallel", f"hydra.sweep.dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "train.py", "-m", *overrides, *how, *more], check=True, cwd=ROOT, env=environment)
    return folder


def keep_report(folder: Path, target: Path, prefix: str) -> None:
    """Writes the report of a sweep and copies its tables and heatmap beside a README, under ``prefix``_<name>."""
    subprocess.run([sys.executable, "report.py", f"sweep={folder}"], check=True, cwd=ROOT)
    for path in sorted((folder / "report").iterdir()):
        if path.suffix == ".csv" or path.name == "heatmap.png":
            shutil.copyfile(path, target / f"{prefix}_{path.name}")
