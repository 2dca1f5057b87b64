"""What evaluate.py and predict.py warn of in a policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.policies import policy

from vidcls.metrics.calibration import TEMPERATURES
from vidcls.moderation.policy import fit_policy, policy_notes


def test_a_temperature_at_a_bound_is_pointed_out() -> None:
    """Nearly even probabilities, nearly all right: the likelihood grows up to the lower bound."""
    labels = np.arange(100) % 2
    right = np.where(np.arange(100) == 0, 1 - labels, labels)
    unsure = np.where(np.eye(2)[right] == 1, 0.501, 0.499)
    found = fit_policy(unsure, labels, ["no", "yes"], safe_class="no", targets={}, review_margin=0.2, model="m")
    assert found.temperature == pytest.approx(TEMPERATURES[0], rel=0.01)
    (note,) = policy_notes(found, "val")
    assert "lower bound" in note
    assert list(policy_notes(replace(found, temperature=1.0), "val")) == []


def test_thresholds_that_may_allow_what_is_more_probably_harmful_are_pointed_out() -> None:
    """As earlier versions have fitted them (at most 1 / K), or an easy recall; and a class that val does not have."""
    assert list(policy_notes(policy(review={"harmful": 0.25, "adult": 0.25}), "val")) == []
    (note,) = policy_notes(policy(review={"harmful": 1 / 3, "adult": 1 / 3}), "val")
    assert "0.67 for all harmful classes" in note and "harmful 0.333, adult 0.333" in note
    (note,) = policy_notes(policy(review={"harmful": 0.1, "adult": 0.8}), "val")
    assert "0.90 for all" in note and "only from adult 0.800 on" in note
    (note,) = policy_notes(policy(review={"harmful": 0.1, "adult": 0.1}, support={"safe": 9, "harmful": 9}), "val")
    assert "Note for adult: there is no intact val video of it" in note
    fair = policy(review={"harmful": 0.1, "adult": 0.1}, support={"safe": 0, "harmful": 9, "adult": 9})
    assert "Note for safe: there is no intact val video of it, so how many are blocked" in next(
        policy_notes(fair, "val")
    )
    (note,) = policy_notes(policy(review={"harmful": 0.0, "adult": 0.8}), "val")  # as of an easy precision
    assert "allows no video, as a score of 0 for harmful" in note
