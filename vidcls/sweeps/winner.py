"""The one test of a sweep: its test split is used once, by its winner, and that is kept on record."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from vidcls.errors import UserError
from vidcls.files import write_atomically
from vidcls.sweeps.tables import Sweep, rank, winning_job

TEST_KEYS = ("job", "when", "objective", "value", "val_value", "accuracy", "accuracy_ci95", "macro_f1", "n")


def read_test(sweep: Sweep) -> dict[str, Any] | None:
    """What test.json of a sweep says; None where its test split has not been used.

    Raises:
        UserError: it is damaged.
    """
    path = sweep.folder / "test.json"
    if not path.is_file():
        return None
    try:
        tested = json.loads(path.read_bytes())
        return {name: tested[name] for name in TEST_KEYS}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("a whole test.json", f"{path}: {error!r}", "Bring back the one that was written.") from error


def judge_winner(sweep: Sweep, accelerator: str | None, console: Console) -> None:
    """Tests the best job of the best configuration on the test split and writes test.json, unless that is there.

    test.json holds the job, when (UTC), objective (its name), value (on test), val_value, accuracy, accuracy_ci95,
    macro_f1 and n, all but val_value of the test split.

    Args:
        sweep: finished, but for jobs that failed.
        accelerator: instead of the one of training; None keeps that.
        console: where progress is shown.

    Raises:
        UserError: jobs are missing, none was finished, another one has been tested before, or there is no test split.
    """
    winner, tested = winning_job(sweep, rank(sweep)), read_test(sweep)
    if tested is not None:
        if winner is None or tested["job"] != winner["job"]:
            raise UserError(
                f"the winner that was tested on {tested['when']}, {tested['job']}",
                "none" if winner is None else f"{winner['job']}, which leads now",
                "The test set of this sweep has been used: report that figure, or bring new videos.",
            )
        return
    missing = sweep.count("unfinished") + (sweep.not_started or 0)
    if missing:
        raise UserError(
            "a finished sweep, as its test set can be used once",
            f"{sweep.count('unfinished')} jobs unfinished and {sweep.not_started or 0} not started",
            "Continue it with sweep.resume=DIR, then test.",
        )
    if winner is None:
        raise UserError("a finished job to test", f"none in {sweep.folder}", "Mend what made them fail.")
    sweep.check_writable()
    figures = _test(sweep.folder / winner["job"], accelerator, console)
    tested = {
        "job": winner["job"],
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "objective": sweep.objective,
        "value": figures[sweep.objective],
        "val_value": float(winner["objective"]),
        **{name: figures[name] for name in ("accuracy", "accuracy_ci95", "macro_f1", "n")},
    }
    write_atomically(sweep.folder / "test.json", json.dumps(tested, indent=2, allow_nan=False).encode())


def _test(folder: Path, accelerator: str | None, console: Console) -> dict[str, Any]:
    """The figures of a job on its test split, computed as evaluate.py does."""
    # Imported here: reading a sweep does not take torch.
    from vidcls.data.preparation import redecode_missing
    from vidcls.prediction.predictor import Predictor, load_run

    trained = load_run(folder)
    of_test = trained.manifest[trained.manifest["split"] == "test"]
    if not of_test["status"].isin(["ok", "partial"]).any():
        raise UserError("videos in the sweep's test split", "none", "Judge the winner with evaluate.py on new videos.")
    videos = trained.videos()
    videos.load_manifest(trained.manifest)
    redecode_missing(videos.options, trained.manifest, ["test"], console)
    return Predictor(trained, accelerator).predict_split(videos, "test").summary(trained.classes)


def tested_words(tested: dict[str, Any], winner: pd.Series | None) -> str:
    """What test.json says, and whether it is of the present winner."""
    value = "-" if tested["value"] is None else f"{tested['value']:.3f}"
    low, high = tested["accuracy_ci95"]
    other = "" if tested["objective"] == "accuracy" else f" {tested['objective'].replace('_', ' ')} {value},"
    words = (
        f"Test split, used once ({tested['when']}): {tested['job']} reached{other} accuracy {tested['accuracy']:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}, narrower than the truth where videos of one creator are alike), "
        f"macro F1 {tested['macro_f1']:.3f} on {tested['n']} videos."
    )
    if winner is None or winner["job"] != tested["job"]:
        words += " It is not the winner any more, and the test split cannot be used again."
    return words
