"""Random kills in a Ray cluster of three nodes: are the results those of an undisturbed run on one machine?

    PYTHONPATH=. python experiments/scale/kills.py RUN --kills 100 --seed 0

RUN is a run folder. What is killed, each as often as the others: a process that reads, one that decodes, one that
classifies, a node (but for the head, which holds Ray's own state), and predict.py, which is started again with the same
command. When a prediction has ended its files are compared, and the next begins in an empty folder, until all kills are
spent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from experiments.scale.clips import make_clips
from experiments.tools import ROOT, machine

KINDS = ("reader", "network", "decoder", "node", "predict.py")
FILES = ("predictions.csv", "segments.csv")
HERE = Path(__file__).parent
NODE: Any = {"num_cpus": 1, "object_store_memory": 200_000_000}


def command(run: Path, videos: Path, output: Path, *engine: str) -> list[str]:
    """The command that is repeated."""
    return [sys.executable, str(ROOT / "predict.py"), f"run={run}", f"input={videos}", f"output={output}", *engine]


def victims(kind: str, root: psutil.Process) -> list[psutil.Process]:
    """The processes of a kind below ``root``."""
    found = []
    for process in root.children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            is_decoder = "multiprocessing.spawn" in title and process.parent().cmdline()[0].startswith("ray::Reader")
        except (psutil.Error, AttributeError, IndexError):
            continue
        if is_decoder if kind == "decoder" else title.startswith(f"ray::{kind.capitalize()}"):
            found.append(process)
    return found


def main() -> None:
    """Prints and records what was killed, and whether all results were the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=8.0, help="between two kills, on average")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    killed: Counter[str] = Counter()
    same = starts = 0
    with tempfile.TemporaryDirectory(prefix="kills-") as text:
        folder = Path(text)
        make_clips(folder / "in", arguments.videos, damaged=arguments.videos // 10, seed=arguments.seed)
        subprocess.run(command(arguments.run, folder / "in", folder / "local"), check=True, stdout=subprocess.DEVNULL)
        cluster = patiently(Cluster, initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        nodes = [patiently(cluster.add_node, **NODE) for _ in range(2)]
        engine = ("engine=ray", f"engine.address={cluster.address}", "data.decode.workers=3")
        began, ended = time.monotonic(), True
        while sum(killed.values()) < arguments.kills or not ended:
            output = folder / f"ray_{same}"
            with (folder / "log.txt").open("w") as log:
                predict = subprocess.Popen(
                    command(arguments.run, folder / "in", output, *engine), stdout=log, stderr=log
                )
            starts += 1
            while predict.poll() is None:
                pause = generator.expovariate(1 / arguments.seconds)
                try:
                    predict.wait(pause)
                except subprocess.TimeoutExpired:
                    if sum(killed.values()) < arguments.kills:
                        disturb(generator.choice(KINDS), generator, cluster, nodes, predict, killed)
            if predict.returncode not in (0, -9):
                raise SystemExit(f"predict.py ended with {predict.returncode}:\n{(folder / 'log.txt').read_text()}")
            ended = predict.returncode == 0
            if ended:
                for name in FILES:
                    if (output / name).read_bytes() != (folder / "local" / name).read_bytes():
                        subprocess.run(["diff", output / name, folder / "local" / name])
                        raise SystemExit(f"{name} differs after {dict(killed)}")
                same += 1
                result = {
                    "machine": machine(),
                    "seed": arguments.seed,
                    "videos": arguments.videos,
                    "damaged": arguments.videos // 10,
                    "kills": dict(killed),
                    "predictions": same,
                    "starts": starts,
                    "seconds": round(time.monotonic() - began),
                }
                (HERE / f"kills_{arguments.seed}.json").write_text(json.dumps(result, indent=2) + "\n")
            print(f"{same} predictions the same, {starts} starts of predict.py, killed: {dict(killed)}", flush=True)
        cluster.shutdown()


def patiently(start: Callable[..., Any], **options: Any) -> Any:
    """Starts a node; on a busy machine Ray gives up after 30 s."""
    for _ in range(9):
        with suppress(Exception):  # the type that Ray raises
            return start(**options)
    return start(**options)


def disturb(
    kind: str,
    generator: random.Random,
    cluster: Any,
    nodes: list[Any],
    predict: subprocess.Popen[bytes],
    killed: Counter[str],
) -> None:
    """Kills one process or node of a kind, if there is one; a node is replaced."""
    if kind == "predict.py":
        predict.kill()
        predict.wait()
    elif kind == "node":
        place = generator.randrange(len(nodes))
        cluster.remove_node(nodes[place], allow_graceful=False)
        nodes[place] = patiently(cluster.add_node, **NODE)
    else:
        found = victims(kind, psutil.Process())
        if not found:
            return
        try:
            generator.choice(found).kill()
        except psutil.NoSuchProcess:
            return
    killed[kind] += 1


if __name__ == "__main__":
    main()
