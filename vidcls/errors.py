"""The one exception that is the user's to mend: exit code 2 and one clear line, no traceback."""

from __future__ import annotations

import math
from typing import Any


class UserError(Exception):
    """A configuration or an input that cannot be used.

    Args:
        expected: what would have been right.
        got: what was found instead.
        remedy: what the user can do about it.

    Example:
        >>> str(UserError("a folder of videos", "an empty folder: clips/", "Check data.source."))
        'expected a folder of videos; got an empty folder: clips/. Check data.source.'
    """

    def __init__(self, expected: str, got: str, remedy: str) -> None:
        super().__init__(expected, got, remedy)  # kept apart, so that it can be pickled across processes

    def __str__(self) -> str:
        expected, got, remedy = self.args
        return f"expected {expected}; got {got}. {remedy}"


def user_message(error: BaseException | None) -> str | None:
    """What the user can mend, also where Hydra wrapped it while building an object; None for bugs."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        error = error.__cause__
    return None


def check_integer(knob: str, value: Any, minimum: int = 1) -> int:
    """``value`` where it is an integer >= ``minimum``; raises `UserError` naming the ``knob`` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{knob} to be an integer >= {minimum}", repr(value), f"Set {knob}={max(minimum, 1)} or more.")
    return value


def check_number(knob: str, value: Any, minimum: float = 0.0, maximum: float = math.inf) -> float:
    """``value`` where it is a number in [``minimum``, ``maximum``]; raises `UserError` otherwise."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not minimum <= value <= maximum:
        raise UserError(f"{knob} to be a number from {minimum:g} to {maximum:g}", repr(value), f"Change {knob}.")
    return float(value)


def check_choice(knob: str, value: Any, choices: tuple[str, ...]) -> str:
    """``value`` where it is one of ``choices``; raises `UserError` listing them otherwise."""
    if value not in choices:
        raise UserError(f"{knob} to be one of {', '.join(choices)}", repr(value), f"Change {knob}.")
    return str(value)
