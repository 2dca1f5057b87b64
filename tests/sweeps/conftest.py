"""Sweeps that the tests of this folder share: a small one, and two that are written by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import call, once, train
from helpers.written_sweeps import FRAMES, HIDDEN, Writer

SWEPT = ["data.num_frames=2,4", "model.lstm.hidden_size=4,-1", "trainer.max_epochs=2"]


@pytest.fixture(scope="session")
def base(tiny: list[str]) -> list[str]:
    """A tiny run's overrides without those that the sweeps here vary."""
    varied = ("data.num_frames", "model.lstm", "trainer.max_epochs", "cache_dir")
    return [*(text for text in tiny if not text.startswith(varied)), "figures=false"]


@pytest.fixture(scope="session")
def command(base: list[str], shared: Path) -> list[str]:
    return ["-m", *base, f"cache_dir={shared / 'sweep_cache'}", *SWEPT]


@pytest.fixture(scope="session")
def sweep(shared: Path, command: list[str]) -> Path:
    """The folder of a sweep with an empty cache at first: two jobs are done, two have failed. Read only."""

    def run(folder: Path) -> None:
        result = train(*command, f"hydra.sweep.dir={folder}")
        assert result.code == 1, result.stderr
        folder.with_suffix(".out").write_text(result.stdout)
        folder.with_suffix(".err").write_text(result.stderr)

    return once(shared, "sweep", run)


@pytest.fixture
def copied(sweep: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sweep, tmp_path / "copied"))


@pytest.fixture
def grid(tmp_path: Path) -> Writer:
    """Two options and two seeds, all done: means 0.5, 0.6, 0.7 and 0.6."""
    writer = Writer(tmp_path / "grid", [FRAMES, HIDDEN, "seed"], planned=8)
    for frames, hidden, mean in ((16, 32, 0.7), (8, 64, 0.6), (16, 64, 0.6), (8, 32, 0.5)):
        for seed, aside in ((0, -0.1), (1, 0.1)):
            writer.done({FRAMES: frames, HIDDEN: hidden, "seed": seed}, mean + aside, speed=1000 / frames)
    return writer


@pytest.fixture
def ragged(tmp_path: Path) -> Writer:
    """Done, failed, unfinished and not started jobs; words, null, lists and an option with one value."""
    options = ["model", "trainer.gradient_clip_val", "model.encoder.channels", "seed"]
    writer = Writer(tmp_path / "ragged [1]", options, planned=7, objective="loss")

    def values(model: str, clip: float | None, seed: int) -> dict[str, Any]:
        return dict(zip(options, (model, clip, [8, 16], seed), strict=True))

    writer.done(values("cnn_lstm", None, 0), 0.5, extra=("data.source='/my videos/a b'",))
    writer.done(values("cnn_lstm", None, 1), 0.3)
    writer.done(values("cnn_mean", 1.0, 0), 0.9)
    writer.failed(values("cnn_mean", 1.0, 1), "CUDA out of | memory <b>")
    writer.job(values("cnn_mean", None, 0), epochs=2)
    return writer


@pytest.fixture(scope="session")
def folds_command(tiny: list[str]) -> list[str]:
    return [*tiny, "trainer.max_epochs=1", "folds=3", "repeats=1", "figures=false"]


@pytest.fixture(scope="session")
def validated(shared: Path, folds_command: list[str]) -> Path:
    """The folder of a finished cross-validation of the small demo set; what it printed lies beside it. Read only."""

    def run(folder: Path) -> None:
        result = call("cross_validate.py", *folds_command, f"output={folder}")
        assert result.code == 0, result.stderr
        folder.with_suffix(".out").write_text(result.stdout)

    return once(shared, "validated", run)
