"""Alters the files of a finished run at random: is each refused in one line, or is the result the right one?

python experiments/torture/run_folders.py DIR --count 300

Each altered run is evaluated (its validation videos are predicted), its policy is read, and what resume= and export.py
need is read. Exit code 1 where an error is no `UserError`, where another result comes out, or where a file is written.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidcls.data.store import StoreEntryError
from vidcls.errors import UserError
from vidcls.moderation.policy import load_policy
from vidcls.prediction.loading import load_run
from vidcls.prediction.run import LoadedRun
from vidcls.training.checkpoint import load_last
from vidcls.training.options import check_train_options
from vidcls.training.run_config import check_trusted, read_config

FILES = ("config.yaml", "manifest.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "policy.json")


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One change: a bit, a byte, a few bytes gone or put in, or the end cut off."""
    place = rng.randrange(len(content))
    kind = rng.choice(["bit", "byte", "gone", "put in", "cut"])
    if kind == "cut":
        return content[:place]
    new = {"bit": bytes([content[place] ^ 1 << rng.randrange(8)]), "byte": rng.randbytes(1), "gone": b""}
    inserted = rng.choice([b"\n", b'"', b"- ", b"{}", b"&a *a", b"\x00", b"999", b"_target_: os.system"])
    return content[:place] + new.get(kind, inserted) + content[place + rng.choice([1, 1, 4]) * (kind != "put in") :]


def results(folder: Path, policy: dict[str, Any]) -> dict[str, object]:
    """What a run gives: its predictions by the content of each video, its policy, and the weights it continues from.

    ``policy`` is the intact policy.json, which names the network that it is for.
    """
    run = load_run(folder)
    cfg = read_config(folder)
    check_trusted(cfg)
    cfg.resume = str(folder)
    check_train_options(cfg)
    last = load_last(folder, run.classes)
    assert last is not None
    weights = {name: tensor.tolist() for name, tensor in last[1].state_dict.items()}
    read = load_policy(folder / "policy.json", policy["classes"], policy["model"])
    return {"predictions": predictions(run), "policy": read, "weights": weights}


def predictions(run: LoadedRun) -> dict[str, bytes]:
    """By the content of each validation video: its class and its probabilities."""
    videos = run.videos()
    predicted = run.make_predictor().predict_split(videos, "val")
    rows = zip(videos.rows("val")["sha256"], predicted.labels, predicted.probabilities, strict=True)
    return {sha256: label.tobytes() + probabilities.tobytes() for sha256, label, probabilities in rows}


def disturb(intact: Path, work: Path, name: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Alters one file ``count`` times; for each, what is counted and what is wrong (empty if nothing)."""
    policy = json.loads((intact / "policy.json").read_text())
    rng, expected = random.Random(f"{seed} {name}"), results(intact, policy)
    run = Path(shutil.copytree(intact, work / "run"))
    content = (run / name).read_bytes()
    before = _files(work)
    for number in range(count):
        (run / name).write_bytes(mutate(content, rng))
        wrong = ""
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            try:
                found = results(run, policy)
            except UserError as error:
                counted = error.code or "no code"
                wrong = f"{name} {number}: several lines" if "\n" in str(error) else ""
            except StoreEntryError:  # a hash of the manifest that no stored video has
                counted = "missing-frames"
            except Exception as error:
                counted, wrong = "traceback", f"{name} {number}: {error!r}"
            else:
                announced = any("Continuing from the epoch before" in str(each.message) for each in noted)
                counted = "the epoch before, as announced" if announced else "right"
                differs = [
                    key for key in expected if found[key] != expected[key] and not (announced and key == "weights")
                ]
                wrong = f"{name} {number}: other {differs}" if differs else ""
        if _files(work) != before:
            wrong = f"{name} {number}: files were written"
        yield counted, wrong
    shutil.rmtree(run)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def main() -> int:
    """Alters each file of a copy of the run, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    for name in FILES:
        with tempfile.TemporaryDirectory() as work:
            found = list(disturb(options.run, Path(work), name, options.count // len(FILES), options.seed))
        print(f"{name}: {dict(Counter(counted for counted, _ in found).most_common())}", flush=True)
        for _, wrong in found:
            print(wrong + "\n" if wrong else "", end="", flush=True)
            failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
