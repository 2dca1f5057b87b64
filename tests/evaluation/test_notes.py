"""What evaluate.py warns of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidcls.evaluation.notes import share_shift, split_notes, temperature_notes
from vidcls.metrics.calibration import TEMPERATURES
from vidcls.metrics.predictions import Predictions
from vidcls.moderation.policy import fit_policy
from vidcls.prediction.loading import load_run


def predictions(labels: np.ndarray, predicted: np.ndarray) -> Predictions:
    return Predictions(labels, np.eye(3, dtype=np.float32)[predicted], np.zeros(len(labels), np.float32))


def test_a_class_that_is_predicted_too_seldom_is_named(finished: Path) -> None:
    run = load_run(finished)
    rows = run.manifest[run.manifest["split"] == "val"].iloc[[0] * 60].reset_index(drop=True)
    rows = rows.assign(path=[f"{n}.mp4" for n in range(60)], creator="", sha256="")
    labels = np.arange(60) % 3
    known = run.manifest.assign(split="train").iloc[[0] * 60].reset_index(drop=True)
    known = known.assign(path=rows["path"], creator="", sha256="", label=[run.classes[k] for k in labels])
    fitted = replace(run, manifest=known, oof_predictions=predictions(labels, labels))
    shift = share_shift(fitted, rows, predictions(labels, np.where(labels == 1, 2, labels)))
    notes = list(split_notes("test", shift))
    assert shift is not None and shift["per_class"]["harmful"]["true"] == pytest.approx(1 / 3)
    assert ["predicted as harmful" in note for note in notes] == [True, False] and "0% of test" in notes[0]
    assert list(split_notes("test", share_shift(fitted, rows, predictions(labels, labels)))) == []
    assert share_shift(replace(run, val_predictions=None), rows, predictions(labels, labels)) is None


def test_a_temperature_at_a_bound_is_pointed_out() -> None:
    """Nearly even probabilities, nearly all right: the likelihood grows up to the lower bound."""
    labels = np.arange(100) % 2
    right = np.where(np.arange(100) == 0, 1 - labels, labels)
    unsure = np.where(np.eye(2)[right] == 1, 0.501, 0.499)
    policy = fit_policy(unsure, labels, ["no", "yes"], safe_class="no", targets={}, review_margin=0.2, model="m")
    assert policy.temperature == pytest.approx(TEMPERATURES[0], rel=0.01)
    (note,) = temperature_notes(policy, "val")
    assert "lower bound" in note
    assert list(temperature_notes(replace(policy, temperature=1.0), "val")) == []
