"""Disturbs train.py, predict.py, inspect_data.py and a sweep in the middle, gives the same command again, and compares.

python experiments/torture/torture.py faults --count 60     one file operation fails, or its process is killed there
python experiments/torture/torture.py kills --count 100     the command is killed at a random time

Commands are forked from a process with all imports done, so that what disturbs them hits the work. A killed command
leaves its decoding processes behind, beside which it is given again.
Exit code 1 where a result differs from that of an undisturbed command, or a command does not recover.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from helpers.warm_python import start_server, warm_python  # type: ignore[import-not-found] # noqa: E402

FAULTS = ("ENOSPC", "EIO", "EACCES", "SIGKILL")
TINY = [
    "data.num_frames=4",
    "data.resolution=16",
    "data.decode.workers=1",
    "data.demo.creators=3",
    "data.demo.videos_per_creator=3",
    "model=cnn_mean",
    "model.encoder.channels=[4]",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
]
TIMEOUT, HUNG = 300, -999


@dataclass(frozen=True)
class Command:
    """A command whose results are in ``work``/out, and how it is given again after a disturbance."""

    name: str
    arguments: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]


def train_arguments(work: Path) -> list[str]:
    """A training with its own demo videos and cache."""
    return ["train.py", *TINY, f"data.source={work}/demo", f"cache_dir={work}/cache", f"run_dir={work}/out"]


def train_again(work: Path) -> list[str]:
    """Resumes the run; one that was disturbed before it had a configuration starts again."""
    if (work / "out" / "config.yaml").exists():
        return ["train.py", f"resume={work}/out"]
    shutil.rmtree(work / "out", ignore_errors=True)
    return train_arguments(work)


def sweep_arguments(work: Path) -> list[str]:
    """A sweep of two jobs."""
    script, *overrides = train_arguments(work)[:-1]
    return [script, "-m", *overrides, "optim.lr=0.001,0.01", f"hydra.sweep.dir={work}/out"]


def sweep_again(work: Path) -> list[str]:
    """Continues the sweep; one that was disturbed before it had a folder starts again."""
    if not (work / "out" / "sweep.json").exists():
        shutil.rmtree(work / "out", ignore_errors=True)
        return sweep_arguments(work)
    return [*sweep_arguments(work)[:-1], f"sweep.resume={work}/out"]


def ingest_arguments(work: Path) -> list[str]:
    """The demo videos drawn and decoded, and a page about them: all of an ingest and no training."""
    videos = [*TINY[:5], f"data.source={work}/demo", f"cache_dir={work}/cache"]
    return ["inspect_data.py", *videos, f"output={work}/out"]


def ingest_again(work: Path) -> list[str]:
    """The page wants a new folder."""
    shutil.rmtree(work / "out", ignore_errors=True)
    return ingest_arguments(work)


def predict_arguments(work: Path) -> list[str]:
    """A prediction of the videos of a finished run, in windows."""
    windows = ["predict.max_whole_seconds=1", "predict.window_seconds=1", "predict.stride_seconds=0.5"]
    return ["predict.py", f"run={work}/run", f"input={work}/demo", f"output={work}/out", *windows]


COMMANDS = {
    command.name: command
    for command in (
        Command("ingest", ingest_arguments, ingest_again),
        Command("train", train_arguments, train_again),
        Command("predict", predict_arguments, predict_arguments),
        Command("sweep", sweep_arguments, sweep_again),
    )
}


def run(arguments: list[str], work: Path, torture: str = "", kill_after: float | None = None) -> tuple[int, str]:
    """Runs ``python ARGUMENTS``; gives its exit code and what it wrote to stderr."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{Path(__file__).parent / 'hook'}"}
    if torture:
        environment["VIDCLS_TORTURE"] = torture
    with (work / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [warm_python(), str(ROOT / arguments[0]), *arguments[1:]],
            cwd=work,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = process.wait(TIMEOUT if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            code = HUNG if kill_after is None else -signal.SIGKILL
        with suppress(ProcessLookupError):  # also workers that a killed process has left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return code, (work / "stderr").read_text()


def results(name: str, out: Path) -> dict[str, object]:
    """What must be equal: metrics without timing, predictions, weights."""
    if name == "predict":
        frame = pd.read_parquet(out / "timelines.parquet")
        columns = ["path", "sha256", "decision", "predicted", "score", "coverage", "status", "windows"]
        predictions = pd.read_csv(out / "predictions.csv")[columns]
        place = str(out.parent)  # paths may begin with it
        return {"predictions": predictions.to_csv().replace(place, ""), "timelines": frame.to_csv().replace(place, "")}
    found: dict[str, object] = {}
    if name == "ingest":
        place, stored = str(out.parent), out.parent / "cache" / "store"
        found["page"] = (out / "data.html").read_text().replace(place, "")
        frames = [path for path in stored.rglob("*") if path.is_file() and not path.name.startswith(".")]
        found |= {str(path.relative_to(stored)): path.read_bytes() for path in frames}
        return found
    for metrics in sorted(out.rglob("metrics.json")):
        folder, job = metrics.parent, str(metrics.parent.relative_to(out))
        for table in ("predictions_val.csv", "predictions_test.csv", "history.csv"):
            if (folder / table).exists():
                found[f"{job}/{table}"] = (folder / table).read_text()
        state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        found[f"{job}/weights"] = {key: value.tolist() for key, value in state.items()}
    return found


def outcome(code: int, stderr: str) -> str:
    """What a disturbed command ended with."""
    if code == 0:
        return "finished"
    if code == -signal.SIGKILL:
        return "killed"
    if code == HUNG:
        return "hung"
    return "traceback" if "Traceback" in stderr else "error line"


def disturb(command: Command, template: Path, expected: dict[str, object], torture: tuple[int, str] | float) -> str:
    """Disturbs one command in a copy of ``template`` and repeats it; describes both."""
    # Of a killed command, decoding processes may still write.
    with tempfile.TemporaryDirectory(prefix="torture", ignore_cleanup_errors=True) as folder:
        work = Path(folder) / "work"
        shutil.copytree(template, work, symlinks=True)
        if isinstance(torture, float):
            code, stderr = run(command.arguments(work), work, kill_after=torture)
        else:
            plan = f"{work}:{folder}/counter:{torture[0]}:{torture[1]}"
            code, stderr = run(command.arguments(work), work, plan)
        first = outcome(code, stderr)
        if first == "traceback":
            print(torture, stderr[-1500:], flush=True)
        if code == 0 and isinstance(torture, float):  # it was faster than the undisturbed one
            return disturb(command, template, expected, torture / 2)
        if code == 0:
            return f"{first}, {compared(command, work, expected)}"
        code, stderr = run(command.again(work), work)
        if code != 0:
            print(torture, stderr[-1500:], flush=True)
            return f"{first}, then NOT RECOVERED"
        return f"{first}, then {compared(command, work, expected)}"


def compared(command: Command, work: Path, expected: dict[str, object]) -> str:
    """Whether the results are those of the undisturbed command."""
    found = results(command.name, work / "out")
    return "the same result" if found == expected else f"DIFFERENT {sorted(set(found) ^ set(expected)) or 'VALUES'}"


def prepare(command: Command, template: Path, part: str) -> tuple[dict[str, object], int, float]:
    """The state before the command, its undisturbed results, the number of its file operations and its seconds."""
    template.mkdir(parents=True)
    if command.name == "predict":
        arguments = [text.replace(f"{template}/out", f"{template}/run") for text in train_arguments(template)]
        assert run(arguments, template)[0] == 0
        shutil.rmtree(template / "cache")
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        work = Path(folder) / "work"
        shutil.copytree(template, work)
        started = time.perf_counter()
        counter = Path(folder) / "counter"
        code, stderr = run(command.arguments(work), work, f"{work}:{counter}:0:EIO" if part == "faults" else "")
        assert code == 0, stderr
        seconds = time.perf_counter() - started
        return results(command.name, work / "out"), counter.stat().st_size if counter.exists() else 0, seconds


def main() -> int:
    """Disturbs each command ``count`` times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("faults", "kills"))
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--count", type=int, default=60, help="disturbances of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="a .json file of the counts; default: beside this file")
    options = parser.parse_args()
    start_server()
    subprocess.run([warm_python(), "-c", ""], check=True)  # returns when it has imported all
    path = options.output or Path(__file__).with_name(f"{options.part}.json")
    record: dict[str, Any] = {"seed": options.seed, "commands": {}}
    generator, failed = random.Random(options.seed), False
    for name in options.commands:
        with tempfile.TemporaryDirectory(prefix="torture") as folder:
            template = Path(folder) / "template"
            expected, operations, seconds = prepare(COMMANDS[name], template, options.part)
            plans: list[tuple[int, str] | float]
            if options.part == "faults":
                numbers = sorted(generator.sample(range(1, operations + 1), min(options.count, operations)))
                plans = [(number, FAULTS[place % len(FAULTS)]) for place, number in enumerate(numbers)]
            else:
                plans = [generator.uniform(0.0, seconds) for _ in range(options.count)]
            with ThreadPoolExecutor(options.workers) as pool:
                found = Counter(pool.map(partial(disturb, COMMANDS[name], template, expected), plans))
        counts = dict(found.most_common())
        record["commands"][name] = {"disturbed": len(plans), "seconds": round(seconds, 1), "outcomes": counts}
        if operations:
            record["commands"][name]["file_operations"] = operations
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"{options.part} of {name}: {counts}", flush=True)
        failed |= any(text != text.lower() or "traceback" in text or "hung" in text for text in counts)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
