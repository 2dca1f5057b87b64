"""The single test of a sweep: only its winner uses the test split, once, and test.json holds the result."""

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from vidcls.errors import UserError
from vidcls.files import write_json
from vidcls.sweeps.jobs import read_json
from vidcls.sweeps.tables import Sweep, rank, winning_job

TEST_KEYS = ("job", "when", "objective", "value", "val_value", "accuracy", "accuracy_ci95", "macro_f1", "n")


def read_test(sweep: Sweep) -> dict[str, Any] | None:
    """The content of test.json; None if the test split has not been used."""
    path = sweep.folder / "test.json"
    if not path.is_file():
        return None
    return read_json(path, *TEST_KEYS)


def winner_to_test(sweep: Sweep) -> pd.Series | None:
    """The best job of the best configuration; None if it was tested already.

    Raises:
        UserError: jobs are missing, none is finished, another one was tested before, or the folder is read-only.
    """
    winner, tested = winning_job(sweep, rank(sweep)), read_test(sweep)
    if tested is not None:
        if winner is None or tested["job"] != winner["job"]:
            raise UserError(
                f"the winner that was tested on {tested['when']}, {tested['job']}",
                "none" if winner is None else f"{winner['job']}, which leads now",
                "The test set of this sweep has been used: report that result, or test on new videos.",
                "test-set-used",
            )
        return None
    missing = sweep.count("unfinished") + (sweep.not_started or 0)
    if missing:
        raise UserError(
            "a finished sweep, as its test set can be used once",
            f"{sweep.count('unfinished')} jobs unfinished and {sweep.not_started or 0} not started",
            "Continue it with sweep.resume=DIR, then test.",
            "unfinished-sweep",
        )
    if winner is None:
        got, remedy = f"none in {sweep.folder}", "See error.txt in the folders of its jobs."
        raise UserError("a finished job to test", got, remedy, "no-winner")
    sweep.check_writable()
    return winner


def record_test(sweep: Sweep, winner: pd.Series, metrics: dict[str, Any]) -> None:
    """Writes test.json: ``value`` is the objective on the test split, ``val_value`` on val."""
    tested = {
        "job": winner["job"],
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "objective": sweep.objective,
        "value": metrics[sweep.objective],
        "val_value": float(winner["objective"]),
        **{name: metrics[name] for name in ("accuracy", "accuracy_ci95", "macro_f1", "n")},
    }
    write_json(sweep.folder / "test.json", tested)


def describe_test(tested: dict[str, Any], winner: pd.Series | None) -> str:
    """A sentence or two about the content of test.json."""
    low, high = tested["accuracy_ci95"]
    value = "undefined" if tested["value"] is None else f"{tested['value']:.3f}"
    objective = "" if tested["objective"] == "accuracy" else f"{tested['objective'].replace('_', ' ')} {value}, "
    text = (
        f"Test split, used once ({tested['when']}): "
        f"{tested['job']} reached {objective}accuracy {tested['accuracy']:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}, too narrow if videos of one creator are alike), "
        f"macro F1 {tested['macro_f1']:.3f} on {tested['n']} videos."
    )
    if winner is None or winner["job"] != tested["job"]:
        text += " It is no longer the winner, and the test split cannot be used again."
    return text
