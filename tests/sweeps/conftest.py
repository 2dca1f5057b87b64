"""One small sweep that the tests of this folder share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.commands import once, train

SWEPT = ["data.num_frames=2,4", "model.lstm.hidden_size=4,-1", "trainer.max_epochs=2"]


@pytest.fixture(scope="session")
def base(tiny: list[str]) -> list[str]:
    """A tiny run's overrides without those that the sweeps here vary."""
    varied = ("data.num_frames", "model.lstm", "trainer.max_epochs", "cache_dir")
    return [text for text in tiny if not text.startswith(varied)]


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
