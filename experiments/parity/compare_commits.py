"""Do two checkouts of this repository train the same network, bit for bit?

Runs ``model=cnn_lstm`` on the demo videos, and ``experiment=strong`` on those that are given,
in each checkout, and compares weights, metrics and predictions. Exit code 1 where anything differs.

git worktree add ../before COMMIT
python experiments/parity/compare_commits.py ../before . --source VIDEOS --weights FILE
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

SPLITS = ("train", "val", "test")
TABLES = ("manifest.csv", "history.csv", "predictions_val.csv", "predictions_test.csv")


def train(checkout: Path, folder: Path, options: list[str]) -> None:
    """A run of ``checkout`` in ``folder``, unless it has been finished before."""
    if (folder / "metrics.json").is_file():
        return
    print(f"{checkout}: {' '.join(options)}", flush=True)
    command = [sys.executable, str(checkout.resolve() / "train.py"), *options, f"run_dir={folder}"]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        subprocess.run(command, cwd=folder.parent, env=environment, stdout=log, stderr=log, check=True)


def differences(one: Path, two: Path) -> list[str]:
    """What is not the same, to the last bit, in two run folders; timings aside."""
    found = []
    for name in ("best", "last"):
        states = [torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (one, two)]
        first, second = (state["state_dict"] for state in states)
        same = first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
        found += [] if same else [f"weights of {name}.ckpt"]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    found += [f"metrics of {split}" for split in SPLITS if metrics[0][split] != metrics[1][split]]
    found += [
        name for name in TABLES if (one / name).exists() and (one / name).read_bytes() != (two / name).read_bytes()
    ]
    return found


def main() -> int:
    """Runs and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path)
    parser.add_argument("--source", type=Path, help="videos for experiment=strong")
    parser.add_argument("--weights", type=Path, help="ImageNet weights for experiment=strong")
    parser.add_argument("--out", type=Path, default=Path("runs/parity"))
    arguments = parser.parse_args()
    # The frames are decoded by the checkout that runs first, and shared: decoding has tests of its own.
    shared = [f"cache_dir={(arguments.out / 'cache').resolve()}", "seed=0", "trainer.accelerator=cpu"]
    commands = {"cnn_lstm": ["model=cnn_lstm", *shared]}
    if arguments.source is not None and arguments.weights is not None:
        videos = ["data=folder", f"data.source={arguments.source.resolve()}"]
        weights = f"model.encoder.weights={arguments.weights.resolve()}"
        commands["strong"] = ["experiment=strong", *videos, weights, *shared]
    code = 0
    for name, options in commands.items():
        runs = [(arguments.out / place / name).resolve() for place in ("one", "two")]
        for checkout, run in zip(arguments.checkouts, runs, strict=True):
            train(checkout, run, options)
        found = differences(*runs)
        print(f"{name}: {'differ in ' + ', '.join(found) if found else 'the same, bit for bit'}", flush=True)
        code |= bool(found)
    return code


if __name__ == "__main__":
    sys.exit(main())
