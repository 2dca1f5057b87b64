"""Writes sweeps, job by job, as train.py -m would leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.commands import Result, call

FRAMES, SIZE, HIDDEN = "data.num_frames", "data.resolution", "model.lstm.hidden_size"


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


class Writer:
    """Writes a sweep's folder as train.py -m would."""

    def __init__(self, folder: Path, swept: list[str], planned: int | None, objective: str = "accuracy") -> None:
        self.folder = folder
        about = {"format": 1, "overrides": ["a=1,2", "seed=range(0,3)"], "swept": swept}
        write_json(folder / "sweep.json", about | {"objective": objective, "planned": planned})

    def job(self, options: dict[str, Any], epochs: int = 0, extra: tuple[str, ...] = ()) -> Path:
        """One that has begun."""
        folder = self.folder / ",".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in options.items())
        overrides = [f"{name}={value}" for name, value in options.items()]
        write_json(folder / "job.json", {"knobs": options, "overrides": [*overrides, *extra]})
        rows = [f"{epoch},1,0.5,{1 / epoch},{epoch / 10}" for epoch in range(1, epochs + 1)]
        if rows:
            (folder / "history.csv").write_text(
                "\n".join(["epoch,train/loss,train/accuracy,val/loss,val/accuracy", *rows])
            )
        return folder

    def done(self, options: dict[str, Any], value: float | None, speed: float = 10.0, **more: Any) -> Path:
        """One that is finished, with ``value`` as accuracy and as loss."""
        folder = self.job(options, epochs=4, extra=more.pop("extra", ()))
        figures = {"accuracy": value, "macro_f1": value, "loss": value, "n": 50, "auroc": None}
        val = figures | {"calibration_error": 0.1, "accuracy_ci95": [0.4, 0.9]} | more
        timing = {"fit_seconds": 7.0, "clips_per_second": speed, "peak_memory_bytes": None}
        write_json(
            folder / "metrics.json", {"train": None, "val": val, "test": None, "timing": timing, "parameters": 1234}
        )
        return folder

    def failed(self, options: dict[str, Any], reason: str) -> Path:
        """One that failed."""
        folder = self.job(options)
        (folder / "error.txt").write_text(f"Traceback (most recent call last):\n  ...\n{reason}\n")
        return folder


def report(folder: Path, *overrides: str) -> Result:
    return call("report.py", f"sweep={folder}", *overrides)


def sampled(folder: Path, jobs: int = 16) -> Writer:
    """A study of a sampler: a learning rate over four decades, and a model."""
    writer = Writer(folder, ["optim.lr", "model"], planned=None)
    for place in range(jobs):
        options = {"optim.lr": 10 ** (-5 + 0.27 * place), "model": ("cnn_lstm", "cnn_mean")[place % 2]}
        writer.done(options, 0.5 + 0.01 * place)
    return writer
