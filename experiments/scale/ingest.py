"""Ingest with engine=ray on three nodes of this machine, beside engine=local, and under kills of readers and nodes.

    PYTHONPATH=. python experiments/scale/ingest.py --videos 200 --kills 20

Prints and records seconds, and whether manifest and store were the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections import Counter
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROUNDS = 3


def run(folder: Path, name: str, address: str | None) -> None:
    """One ingest, in a process of its own, with two decoding processes."""
    import pandas as pd

    from vidcls.data.ingest import ingest
    from vidcls.data.options import DecodeLimits, EngineOptions
    from vidcls.data.sampling import StoreSpec
    from vidcls.data.store import FrameStore

    files = sorted(str(file) for file in (folder / "in").iterdir())
    videos = pd.DataFrame({"path": files, "file": files, "label": "a", "split": "train", "creator": ""}, dtype=str)
    store, engine = FrameStore(folder / name, StoreSpec(20, 64)), EngineOptions("ray" if address else "local", address)
    manifest, stats = ingest(videos, store, DecodeLimits(workers=2), folder / f"{name}.sqlite", None, engine)
    manifest.to_csv(folder / name / "manifest.csv")
    (folder / f"{name}.json").write_text(json.dumps(round(stats.seconds, 1)))


def found(folder: Path, name: str) -> dict[str, bytes]:
    """The manifest and all entries of the store."""
    files = [folder / name / "manifest.csv", *(folder / name).rglob("*.safetensors")]
    return {path.name: path.read_bytes() for path in files}


def victims(kind: str) -> list[Any]:
    """The readers of the cluster, or their decoding processes."""
    import psutil

    those = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, AttributeError, IndexError):
            title = (process if kind == "reader" else process.parent()).cmdline()[0]
            if title.startswith("ray::StoreReader"):
                those.append(process)
    return those


def main() -> None:
    """Times first, then kills."""
    from ray.cluster_utils import Cluster

    from experiments.scale.clips import make_clips
    from experiments.scale.kills import NODE, patiently
    from experiments.tools import ROOT, machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0, help="between two kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator, spawn = random.Random(arguments.seed), get_context("spawn")
    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    killed: Counter[str] = Counter()
    same = 0
    with tempfile.TemporaryDirectory(prefix="ingest-") as text:
        folder = Path(text)
        make_clips(folder / "in", arguments.videos, arguments.videos // 10, arguments.seed)
        cluster = patiently(Cluster, initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        nodes = [patiently(cluster.add_node, **NODE) for _ in range(2)]

        def start(name: str, address: str | None) -> Any:
            process = spawn.Process(target=run, args=(folder, name, address))
            process.start()
            return process

        def kill(kind: str) -> None:
            if kind == "node":
                place = generator.randrange(len(nodes))
                cluster.remove_node(nodes[place], allow_graceful=False)
                nodes[place] = patiently(cluster.add_node, **NODE)
            elif those := victims(kind):
                generator.choice(those).kill()
            else:
                return
            killed[kind] += 1

        names = [f"{engine}{number}" for number in range(ROUNDS) for engine in ("local", "ray")]
        for name in names:
            start(name, cluster.address if name.startswith("ray") else None).join()
            assert found(folder, name) == found(folder, "local0"), name
        seconds = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
        print(json.dumps(seconds), flush=True)
        while sum(killed.values()) < arguments.kills:
            process = start(f"killed{same}", cluster.address)
            while process.is_alive():
                process.join(generator.expovariate(1 / arguments.seconds))
                if process.is_alive() and sum(killed.values()) < arguments.kills:
                    kill(generator.choice(("reader", "reader", "decoder", "node")))
            assert found(folder, f"killed{same}") == found(folder, "local0"), dict(killed)
            same += 1
            print(f"{same} ingests the same, killed: {dict(killed)}", flush=True)
        num_entries = len(found(folder, "local0")) - 1
        cluster.shutdown()
    result = {"machine": machine(), "seed": arguments.seed, "videos": arguments.videos, "entries": num_entries}
    result |= {"seconds": seconds, "kills": dict(killed), "ingests_under_kills_the_same": same}
    (HERE / "ingest.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
