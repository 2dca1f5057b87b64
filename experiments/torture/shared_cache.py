"""Two to eight processes decode into one cache while their files are replaced: does it ever keep another file's frames?

python experiments/torture/shared_cache.py --count 30

Each process is an inspect_data.py over the same 12 videos, which share 24 contents between them. Meanwhile files are
replaced by others, sometimes with the same size and time of change. Afterwards each entry of the cache is held against
a decode of its content by a process that is alone. Exit code 1 where one differs, or a process ends with a traceback.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np

from vidcls.data.demo import draw_demo
from vidcls.data.file_hashes import hash_files
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore

ROOT = Path(__file__).parents[2]
SPEC = StoreSpec(4, 16)
OPTIONS = ["data=folder", "data.num_frames=4", "data.resolution=16", "data.decode.workers=1", "accelerator=cpu"]


def start(source: Path, cache: Path, output: Path) -> subprocess.Popen[str]:
    """A process that hashes and decodes the videos of ``source`` into ``cache``."""
    command = [sys.executable, str(ROOT / "inspect_data.py"), *OPTIONS, f"data.source={source}", f"cache_dir={cache}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, f"output={output}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def replace_files(files: list[Path], contents: list[Path], draw: random.Random, done: threading.Event) -> int:
    """Puts other contents into files until ``done``, one a second; gives their number."""
    count = 0
    while not done.wait(draw.uniform(0.0, 2.0)):
        file, content = draw.choice(files), draw.choice(contents)
        new = file.with_suffix(".new")
        shutil.copyfile(content, new)
        if draw.random() < 0.5:  # as rsync and tar leave it
            os.utime(new, ns=(10**18, 10**18))
        new.replace(file)
        count += 1
    return count


def disturb(contents: list[Path], draw: random.Random, reference: dict[str, np.ndarray]) -> Counter[str]:
    """One trial: how the processes ended, how many files were replaced, and what the cache holds."""
    counts = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="shared") as name:
        folder = Path(name)
        files = [folder / "clips" / f"{number % 2}" / f"creator{number}_{number}.mp4" for number in range(12)]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(draw.choice(contents), file)
        done, replaced = threading.Event(), list[int]()
        thread = threading.Thread(target=lambda: replaced.append(replace_files(files, contents, draw, done)))
        thread.start()
        number = draw.randint(2, 8)
        processes = [start(folder / "clips", folder / "cache", folder / f"out{place}") for place in range(number)]
        for process in processes:
            error = process.communicate()[1]
            kind = "traceback" if "Traceback" in error else "finished" if process.returncode == 0 else "error line"
            counts[f"processes: {kind}"] += 1
            if kind != "finished":
                print(error[-600:], flush=True)
        done.set()
        thread.join()
        counts["files replaced"] += replaced[0]
        store = FrameStore(folder / "cache" / "store", SPEC)
        for path in store.folder.rglob("*.safetensors"):
            found = store.read(path.stem, np.arange(SPEC.stored_frames))
            same = path.stem in reference and np.array_equal(found, reference[path.stem])
            counts["entries of the cache: " + ("right" if same else "WRONG")] += 1
    return counts


def main() -> int:
    """Runs ``count`` trials and records what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("shared_cache.json"))
    options = parser.parse_args()
    draw, counts = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="shared") as name:
        folder = Path(name)
        draw_demo(folder / "clips", seed=options.seed, creators=8, videos_per_creator=3)
        contents = sorted((folder / "clips").rglob("*.mp4"))
        code = start(folder / "clips", folder / "cache", folder / "out").wait()
        assert code == 0, "the videos cannot be decoded"
        store, every = FrameStore(folder / "cache" / "store", SPEC), np.arange(SPEC.stored_frames)
        reference = {hashed.sha256: store.read(hashed.sha256, every) for hashed in hash_files(contents, None)}
        for trial in range(options.count):
            counts += disturb(contents, draw, reference)
            record = {"trials": trial + 1, "seed": options.seed, "counts": dict(sorted(counts.items()))}
            options.output.write_text(json.dumps(record, indent=2) + "\n")
            print(record, flush=True)
    return int(any("WRONG" in kind or "traceback" in kind for kind in counts))


if __name__ == "__main__":
    sys.exit(main())
