"""How long do engine=local, engine=ray and a plain Ray Data pipeline take for the same videos, and how much memory?

    PYTHONPATH=. python experiments/scale/engines.py RUN --videos 2000

RUN is a run folder. Each command runs from its start to its last file, one after another, ``--repeats`` times. Memory
is what all its processes hold that no other does (PSS), sampled every two seconds; Ray's object store is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from experiments.scale.clips import make_clips
from experiments.tools import ROOT, machine

HERE = Path(__file__).parent
FILES = ("predictions.csv", "segments.csv")


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--names", type=int, default=1, help="of each video: hard links")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--commands", nargs="+", default=["local_1", "local_2", "ray_1", "ray_2", "plain"])
    parser.add_argument("--limit", type=float, default=1800, help="seconds, after which a command is ended")
    arguments = parser.parse_args()
    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # also where an image says otherwise: a command compiles no library anew
    path = HERE / "engines.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": machine(), "measured": []}
    with tempfile.TemporaryDirectory(prefix="engines-") as text:
        folder = Path(text)
        make_clips(folder / "in", arguments.videos)
        for clip in list((folder / "in").iterdir()) if arguments.names > 1 else ():
            for number in range(1, arguments.names):
                (folder / "in" / f"{clip.stem}_{number}.mp4").hardlink_to(clip)
        for repeat in range(arguments.repeats):
            for name in arguments.commands:
                output = folder / f"{name}_{repeat}"
                row = {"command": name, "videos": arguments.videos, "rows": arguments.videos * arguments.names}
                row |= measure(command(name, arguments.run, folder / "in", output), arguments.limit)
                if name == "plain":
                    row["rows_written"] = sum(pq.read_metadata(file).num_rows for file in output.glob("*.parquet"))
                else:
                    first = next(folder.glob("local_*_0"), output)
                    row["same_files"] = all((first / one).read_bytes() == (output / one).read_bytes() for one in FILES)
                print(row, flush=True)
                record["measured"].append(row)
                path.write_text(json.dumps(record, indent=2) + "\n")


def command(name: str, run: Path, videos: Path, output: Path) -> list[str]:
    """The command that ``name`` stands for: an engine and its number of decoding processes."""
    if name == "plain":
        return [sys.executable, str(HERE / "plain.py"), str(run), str(videos), str(output)]
    engine, workers = name.split("_")
    arguments = [f"run={run}", f"input={videos}", f"output={output}", f"data.decode.workers={workers}"]
    return [sys.executable, str(ROOT / "predict.py"), *arguments, f"engine={engine}"]


def measure(arguments: list[str], limit: float) -> dict[str, Any]:
    """Seconds and the largest memory in MB, of a command and all below it."""
    started, largest = time.monotonic(), 0
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, start_new_session=True)
    root, ended = psutil.Process(process.pid), True
    while process.returncode is None:
        if time.monotonic() - started > limit:
            ended = False
            for one in [*root.children(recursive=True), root]:
                one.kill()
        largest = max(largest, memory(root))
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)
    if ended and process.returncode:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    seconds = time.monotonic() - started
    return {
        "ended": ended,
        "seconds": round(seconds, 1),
        "peak_megabytes": round(largest / 1e6),
    }


def memory(root: psutil.Process) -> int:
    """Bytes that a process and all below it hold; what several share counts once."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total


if __name__ == "__main__":
    main()
