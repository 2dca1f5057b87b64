"""Run folders that something has altered: each is refused in one clear line, or gives the right result."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from vidcls.data.store import StoreEntryError
from vidcls.errors import UserError
from vidcls.moderation.policy import Policy, load_policy
from vidcls.prediction.predictor import LoadedRun, Predictor, load_run

OLD_POLICY = Path(__file__).parents[1] / "fixtures" / "old_run" / "policy.json"
SEED, PER_FILE = 0, 20


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One change: a bit, a byte, a few bytes gone or put in, or the end cut off."""
    place = rng.randrange(len(content))
    kind = rng.choice(["bit", "byte", "gone", "put in", "cut"])
    if kind == "cut":
        return content[:place]
    new = {"bit": bytes([content[place] ^ 1 << rng.randrange(8)]), "byte": rng.randbytes(1), "gone": b""}
    inserted = rng.choice([b"\n", b'"', b"- ", b"{}", b"&a *a", b"\x00", b"999", b"_target_: os.system"])
    return content[:place] + new.get(kind, inserted) + content[place + rng.choice([1, 1, 4]) * (kind != "put in") :]


def policy_of(run: Path) -> Policy:
    """As its own network would load it."""
    original = json.loads(OLD_POLICY.read_text())
    return load_policy(run / "policy.json", original["classes"], original["model"])


def predictions(run: LoadedRun) -> dict[str, bytes]:
    """By the content of each validation video: its class and its probabilities."""
    videos = run.videos()
    predicted = Predictor(run).predict_split(videos, "val")
    rows = zip(videos.rows("val")["sha256"], predicted.labels, predicted.probabilities, strict=True)
    return {sha256: label.tobytes() + probabilities.tobytes() for sha256, label, probabilities in rows}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A copy with a policy.json: that of an old run, which is for another network."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("mutated") / "run"))
    shutil.copy(OLD_POLICY, run / "policy.json")
    return run


@pytest.mark.parametrize("name", ["config.yaml", "manifest.csv", "checkpoints/best.ckpt", "policy.json"])
def test_mutated_files_are_refused_or_change_nothing(intact: Path, name: str, tmp_path: Path) -> None:
    rng, expected, counts = random.Random(f"{SEED} {name}"), predictions(load_run(intact)), Counter[str]()
    run = Path(shutil.copytree(intact, tmp_path / "run"))
    content = (run / name).read_bytes()
    for number in range(PER_FILE):
        (run / name).write_bytes(mutate(content, rng))
        try:
            assert policy_of(run) == policy_of(intact)
            found = predictions(load_run(run))
        except UserError as error:
            assert "\n" not in str(error) and error.code, (number, error)
            counts[error.code] += 1
        except StoreEntryError:  # a hash of the manifest that no stored video has
            counts["missing-frames"] += 1
        else:
            assert found == expected, number
            counts["right"] += 1
    assert counts.total() == PER_FILE
    assert counts["right"] < PER_FILE, counts


def test_weights_of_another_network_are_refused(intact: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(intact, tmp_path / "run"))
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["model.output.weight"] = torch.zeros(7, 7)
    torch.save(checkpoint, path)
    with pytest.raises(UserError) as error:
        load_run(run)
    assert error.value.code == "bad-checkpoint"
