from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.commands import once
from helpers.runs import evaluate


@pytest.fixture(scope="session")
def evaluated(shared: Path, finished: Path) -> Path:
    """A copy, in another place, of a finished run, evaluated on test."""

    def run(folder: Path) -> None:
        shutil.copytree(finished, folder)
        folder.with_suffix(".txt").write_text(evaluate(folder, "split=test"))

    return once(shared, "evaluated", run)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
