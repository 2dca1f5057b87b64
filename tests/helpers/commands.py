"""Runs the entry points, in this process or in one of their own."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from filelock import FileLock
from hydra._internal.hydra import Hydra
from hydra.types import RunMode

from helpers.warm_python import warm_python

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "train.py"
TINY = [
    "data=folder",
    "data.num_frames=4",
    "data.resolution=16",
    "data.decode.workers=1",
    "model.encoder.channels=[4,8]",
    "model.lstm.hidden_size=8",
    "trainer.accelerator=cpu",
]


@dataclass(frozen=True)
class Result:
    """What one call of an entry point ended with."""

    code: int
    stdout: str
    stderr: str


def call(script: str, *overrides: str) -> Result:
    """`python SCRIPT OVERRIDES` in this process, which spares the seconds that importing torch takes."""
    argv, excepthook, stdout, stderr, code = sys.argv, threading.excepthook, io.StringIO(), io.StringIO(), 0
    sys.argv = [str(ROOT / script), *overrides]
    try:
        # It composes the configuration once more, only to see whether it says hydra.mode=MULTIRUN, as these do.
        preset = script == "train.py" and any(text.startswith("sweep=") for text in overrides)
        mode = RunMode.MULTIRUN if preset or script == "cross_validate.py" else None
        composed_once = patch.object(Hydra, "get_mode", lambda *_, **__: mode)
        # Of 200, which take half of the time of an evaluation.
        few_resamples = patch("vidcls.metrics.comparison.RESAMPLES", 20)
        with redirect_stdout(stdout), redirect_stderr(stderr), warnings.catch_warnings(), composed_once, few_resamples:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except Exception:  # as Python itself ends
        traceback.print_exc(file=stderr)
        code = 1
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)  # set where debug shows a traceback
        sys.argv = argv
        torch.use_deterministic_algorithms(False)  # as it was
        threading.excepthook = excepthook
    return Result(code, stdout.getvalue(), stderr.getvalue())


def start(script: str, *overrides: str, cwd: Path, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """`python SCRIPT OVERRIDES` in a process of its own; ``launcher`` may come between the two."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [warm_python(), *launcher, str(ROOT / script), *overrides], cwd=cwd, env=environment, text=True, **pipes
    )


train = partial(call, "train.py")
start_train = partial(start, "train.py")


def once(root: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name``, which the first worker to ask for it has ``make`` fill."""
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not (root / f"{name}.made").exists():
            make(folder)
            (root / f"{name}.made").touch()
    return folder


def train_once(root: Path, name: str, *overrides: str) -> Path:
    """The folder of a run, which the first worker to ask for it starts; what it prints is in a .txt beside it."""

    def run(folder: Path) -> None:
        result = train(*overrides, f"run_dir={folder}")
        assert result.code == 0, result.stderr
        folder.with_suffix(".txt").write_text(result.stdout)

    return once(root, name, run)
