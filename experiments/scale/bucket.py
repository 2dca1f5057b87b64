"""How long does a prediction take over a bucket, beside the same videos in a folder?

    PYTHONPATH=. python experiments/scale/bucket.py RUN --videos 10000

RUN is a run folder. The bucket is moto's, a process on this machine. Seconds are of the clock, and of processors for
predict.py and all that it starts, which a busy machine changes less; of a second command nothing is left to do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import fsspec

from experiments.scale.clips import make_clips
from experiments.tools import ROOT, machine


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--videos", type=int, default=10_000)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    os.environ |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "", "OMP_NUM_THREADS": "1"}
    code = f"from moto.server import main; main(['-p', '{port}'])"
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        with tempfile.TemporaryDirectory(prefix="bucket-") as folder:
            record = measure(Path(folder), port, arguments.run, arguments.videos)
    finally:
        server.kill()
    print(json.dumps(record, indent=2))
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


def measure(folder: Path, port: int, run: Path, num_videos: int) -> dict[str, object]:
    """Fills folder and bucket, and predicts over each twice."""
    make_clips(folder / "in", num_videos)
    for _ in range(600):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            break
        time.sleep(0.1)
    system = fsspec.filesystem("s3")
    system.mkdir("clips")
    system.put(f"{folder / 'in'}/", "clips/day/", recursive=True)
    rows = []
    for name, source in {"folder": str(folder / "in"), "bucket": "s3://clips/day"}.items():
        for done in (False, True):
            command = [sys.executable, str(ROOT / "predict.py"), f"run={run}", f"input={source}"]
            started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([*command, f"output={folder / name}"], check=True, stdout=subprocess.DEVNULL)
            after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            row = {"videos": name, "done_before": done, "seconds": round(seconds, 1), "cpu_seconds": round(used, 1)}
            rows.append(row)
            print(row, flush=True)
    one, two = ((folder / name / "predictions.csv").read_bytes() for name in ("folder", "bucket"))
    return {"machine": machine(), "num_videos": num_videos, "same_predictions": one == two, "measured": rows}


if __name__ == "__main__":
    main()
