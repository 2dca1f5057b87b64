"""What evaluate.py warns of: a threshold that has shifted, a temperature that says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from vidcls.data.preparation import usable_rows
from vidcls.data.splits import group_videos
from vidcls.metrics.calibration import TEMPERATURES
from vidcls.metrics.predictions import Predictions
from vidcls.metrics.shares import compare_shares
from vidcls.moderation.policy import Policy
from vidcls.prediction.predictor import BaseRun


def group_numbers(rows: pd.DataFrame) -> np.ndarray:
    """The number of each video's group, see `vidcls.data.splits.group_videos`."""
    names = group_videos(list(rows["path"]), list(rows["creator"]), list(rows["sha256"]))
    numbers: np.ndarray = np.unique(names, return_inverse=True)[1]
    return numbers


def share_shift(run: BaseRun, rows: pd.DataFrame, predictions: Predictions) -> dict[str, Any] | None:
    """How often each class is predicted, against the run's out-of-fold predictions, or those of val without any.

    None where these are not known.
    """
    known, what = run.val_predictions, "the predictions of val"
    splits: tuple[str, ...] = ("val",)
    if run.oof_predictions is not None:
        known, splits, what = run.oof_predictions, run.fitted_splits, "the out-of-fold predictions of training"
    known_rows = pd.concat([usable_rows(run.manifest, split) for split in splits], ignore_index=True)
    if known is None or [run.classes[k] for k in known.labels] != list(known_rows["label"]):
        return None
    shares = compare_shares(
        predictions.predicted, group_numbers(rows), known.predicted, group_numbers(known_rows), run.classes
    )
    for k, name in enumerate(run.classes):
        shares[name]["true"] = float((predictions.labels == k).mean())
        shares[name]["reference_true"] = float((known.labels == k).mean())
    return {"reference": what, "per_class": shares}


def split_notes(split: str, shift: dict[str, Any] | None) -> Iterator[str]:
    """A sentence or two about each class that is predicted more or less often than in training, beyond chance."""
    differing = {name: one for name, one in shift["per_class"].items() if one["differs"]} if shift else {}
    for name, one in list(differing.items())[: 1 if shift and len(shift["per_class"]) == 2 else None]:
        low, high = one["ci95"]
        reference = shift["reference"] if shift else ""
        yield (
            f"Note: {one['share']:.0%} of {split} are predicted as {name}, against {one['reference']:.0%} of "
            f"{reference}: more than chance explains (95 % interval of the difference {low:+.2f} to {high:+.2f}). "
            f"Truly {name} are {one['true']:.0%} of {split} and {one['reference_true']:.0%} of those. Where the true "
            "shares are alike, the threshold has shifted: choose it on videos like these."
        )


def temperature_notes(policy: Policy, fitted_on: str) -> Iterator[str]:
    """What a temperature at a bound means."""
    if policy.temperature > 0.99 * TEMPERATURES[1]:
        yield (
            f"Note: the {fitted_on} predictions are no better than guessing, so the network's scores say nothing: do "
            "not use this policy."
        )
    if policy.temperature < 1.01 * TEMPERATURES[0]:
        yield (
            f"Note: the temperature is at its lower bound of {TEMPERATURES[0]:g}: on the {fitted_on} predictions the "
            "network is far less sure than it is right, as after too little training. Calibrated, nearly every score "
            "is 0 or 1: train longer before you use this policy."
        )
