"""What evaluate.py warns of beside drift: a temperature that says nothing."""

from __future__ import annotations

from collections.abc import Iterator

from vidcls.metrics.calibration import TEMPERATURES
from vidcls.moderation.policy import Policy


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
