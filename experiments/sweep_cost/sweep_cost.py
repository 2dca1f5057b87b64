"""What a sweep costs beyond its jobs, and whether one that was killed ends as one that was not.

Run it with ``VIDCLS_REAL_DATA=PATH python experiments/sweep_cost/sweep_cost.py`` on a quiet machine; see README.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.tools import ROOT, machine, needed_clips

GRID = ["data.num_frames=8,16,32", "data.resolution=64,112", "model.lstm.hidden_size=32,64", "trainer.max_epochs=2"]
JOBS = 12
MEASURED = ["clips_per_second", "fit_seconds", "peak_memory_bytes"]
"""Columns of the ranking that say how fast a job was: of two equal runs they differ."""


def main() -> None:
    """Runs the sweep whole, then again with a kill -9 in its fifth job; writes results.json."""
    clips = needed_clips()
    scratch = ROOT / "runs" / "sweep_cost"
    shutil.rmtree(scratch, ignore_errors=True)
    command = [sys.executable, "train.py", "-m", *GRID, "data=folder", f"data.source={clips}"]
    command.append(f"cache_dir={scratch / 'cache'}")
    result = {"machine": machine()} | whole(command, scratch / "whole") | killed(command, scratch)
    text = json.dumps(result, indent=2)
    (Path(__file__).parent / "results.json").write_text(text + "\n")
    print(text)


def whole(command: list[str], folder: Path) -> dict[str, float | int]:
    """Wall time, from typing the command to its end, over the jobs' own fit times and one decode."""
    started = time.perf_counter()
    subprocess.run([*command, f"hydra.sweep.dir={folder}"], check=True, cwd=ROOT)
    wall = time.perf_counter() - started
    timings = [json.loads(path.read_text())["timing"] for path in sorted(folder.glob("*/metrics.json"))]
    assert len(timings) == JOBS
    fit = sum(timing["fit_seconds"] for timing in timings)
    decode = max(timing["ingest_seconds"] for timing in timings)
    return {
        "wall_seconds": round(wall, 1),
        "fit_seconds": round(fit, 1),
        "decode_seconds": round(decode, 1),
        "ratio": round(wall / (fit + decode), 3),
        "videos_decoded": sum(timing["videos_decoded"] for timing in timings),
        "jobs_that_decoded": sum(timing["videos_decoded"] > 0 for timing in timings),
    }


def killed(command: list[str], scratch: Path) -> dict[str, bool | int]:
    """Kills the sweep in the middle of its fifth job, continues it, and compares what came of it."""
    folder = scratch / "killed"
    process = subprocess.Popen([*command, f"hydra.sweep.dir={folder}"], cwd=ROOT, start_new_session=True)
    while not in_fifth_job(folder):
        assert process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    subprocess.run([*command, f"hydra.sweep.dir={folder}", f"sweep.resume={folder}"], check=True, cwd=ROOT)
    tables = []
    for sweep in (scratch / "whole", folder):
        subprocess.run([sys.executable, "report.py", f"sweep={sweep}"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        table = pd.read_csv(sweep / "report" / "jobs.csv")
        tables.append(table.drop(columns=[name for name in MEASURED if name in table]))
    return {
        "done_before_the_kill": len(before),
        "done_after": len(list(folder.glob("*/metrics.json"))),
        "run_twice": sum(path.stat().st_mtime_ns != then for path, then in before.items()),
        "same_table": tables[0].equals(tables[1]),
    }


def in_fifth_job(folder: Path) -> bool:
    """Four jobs are done, and of the fifth one epoch is, but not the second."""
    done = len(list(folder.glob("*/metrics.json")))
    epochs = [path for path in folder.glob("*/history.csv") if not (path.parent / "metrics.json").exists()]
    return done == 4 and any(len(path.read_text().splitlines()) == 2 for path in epochs)


if __name__ == "__main__":
    main()
