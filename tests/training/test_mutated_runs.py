"""Run folders that something has altered: each is refused in one clear line, or gives the right result."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from experiments.torture import run_folders
from vidcls.errors import UserError
from vidcls.prediction.loading import load_run

OLD_POLICY = Path(__file__).parents[1] / "fixtures" / "old_run" / "policy.json"
PER_FILE = 10


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A copy with a policy.json: that of an old run, which is for another network."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("mutated") / "run"))
    shutil.copy(OLD_POLICY, run / "policy.json")
    return run


@pytest.mark.parametrize("name", run_folders.FILES)
def test_mutated_files_are_refused_or_change_nothing(intact: Path, name: str, tmp_path: Path) -> None:
    found = list(run_folders.disturb(intact, tmp_path, name, PER_FILE, seed=0))
    counts = Counter(counted for counted, _ in found)
    assert not [wrong for _, wrong in found if wrong]
    assert counts.total() == PER_FILE and counts["right"] < PER_FILE, counts


def test_weights_of_another_network_are_refused(intact: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(intact, tmp_path / "run"))
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["model.output.weight"] = torch.zeros(7, 7)
    torch.save(checkpoint, path)
    with pytest.raises(UserError) as error:
        load_run(run)
    assert error.value.code == "bad-checkpoint"
