"""What evaluate.py warns of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vidcls.metrics.calibration import TEMPERATURES
from vidcls.moderation.policy import fit_policy, temperature_notes


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
