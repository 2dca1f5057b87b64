"""How many stored clips per second are read from a file each, and from a pack of all of them; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.tools import machine
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.packs import pack_store
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore

CACHED_PAGES = Path("/proc/sys/vm/drop_caches")  # root may have the kernel forget what it has read


def fill(store: FrameStore, names: list[str]) -> None:
    """Writes clips of noise."""
    spec = store.spec
    shape = (spec.frames_per_video, spec.stored_resolution, spec.stored_resolution, 3)
    noise = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    for number, name in enumerate(names):
        frames = noise + np.uint8(number % 256)
        store.write(name, frames, DecodeResult("ok", "", "noise", seconds=1.0, coverage=1.0))


def clips_per_second(store: FrameStore, order: list[str], cold: bool) -> float:
    """Of one process that reads whole clips in this order."""
    if cold:
        CACHED_PAGES.write_text("3")
    started = time.perf_counter()
    for name in order:
        store.read(name, np.arange(store.spec.frames_per_video))
    return len(order) / (time.perf_counter() - started)


def main() -> None:
    """Measures both in turns, with the page cache warm and, as root, cold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=20000)
    parser.add_argument("--reads", type=int, default=5000, help="in each round, in random order")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the file system to measure")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("packed.json"))
    arguments = parser.parse_args()
    names = [f"{number * 2654435761 % 2**32:064x}"[::-1] for number in range(arguments.clips)]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        stores = {kind: FrameStore(Path(folder, kind), StoreSpec(20, 64)) for kind in ("files", "pack")}
        for store in stores.values():
            fill(store, names)
        started = time.perf_counter()
        pack_store(stores["pack"].folder)
        packing = time.perf_counter() - started
        os.sync()
        generator, rows = np.random.default_rng(1), []
        for cold in [False, True] if os.access(CACHED_PAGES, os.W_OK) else [False]:
            rates: dict[str, list[float]] = {kind: [] for kind in stores}
            for _ in range(arguments.rounds):
                order = [names[row] for row in generator.permutation(arguments.clips)[: arguments.reads]]
                for kind, store in stores.items():
                    if not cold:
                        clips_per_second(store, order, cold=False)
                    rates[kind].append(round(clips_per_second(store, order, cold)))
            rows.append({"page cache": "cold" if cold else "warm", **rates})
            each, of_all = (median(values) for values in rates.values())
            print(rows[-1], f"packed: {of_all / each:.2f} times as fast", flush=True)
    found = {
        "machine": machine(),
        "clips": arguments.clips,
        "reads": arguments.reads,
        "pack_seconds": round(packing, 1),
        "clips_per_second": rows,
    }
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
