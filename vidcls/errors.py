"""UserError: a mistake that the user can fix. It ends a command with exit code 2 and one clear line, no traceback."""

from __future__ import annotations

import math
from typing import Any


class UserError(Exception):
    """A configuration or an input that cannot be used.

    Its ``code`` is a short, stable name in kebab-case, such as ``empty-source``, by which scripts and tests tell errors
    apart; for a single option with a bad value it is the option's name, such as ``data.num_frames``.

    Example:
        >>> str(UserError("a folder of videos", "an empty folder: clips/", "Check data.source.", "empty-source"))
        'expected a folder of videos; got an empty folder: clips/. Check data.source. [empty-source]'
    """

    def __init__(self, expected: str, got: str, remedy: str, code: str = "") -> None:
        super().__init__(expected, got, remedy, code)  # kept apart, so that it can be pickled across processes

    @property
    def code(self) -> str:
        return str(self.args[3])

    def __str__(self) -> str:
        expected, got, remedy, code = self.args
        return f"expected {expected}; got {got}. {remedy}" + (f" [{code}]" if code else "")


def find_user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` in a chain of causes, as Hydra wraps what is raised while it builds an object; None for bugs."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def check_integer(option: str, value: Any, minimum: int = 1) -> int:
    """``value`` where it is an integer >= ``minimum``; raises `UserError` naming the ``option`` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        remedy = f"Set {option}={max(minimum, 1)} or more."
        raise UserError(f"{option} to be an integer >= {minimum}", repr(value), remedy, option)
    return value


def check_number(option: str, value: Any, minimum: float = 0.0, maximum: float = math.inf) -> float:
    """``value`` where it is a number in [``minimum``, ``maximum``]; raises `UserError` otherwise."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not minimum <= value <= maximum:
        expected = f"{option} to be a number from {minimum:g} to {maximum:g}"
        raise UserError(expected, repr(value), f"Change {option}.", option)
    return float(value)


def check_choice(option: str, value: Any, choices: tuple[str, ...]) -> str:
    """``value`` where it is one of ``choices``; raises `UserError` listing them otherwise."""
    if value not in choices:
        raise UserError(f"{option} to be one of {', '.join(choices)}", repr(value), f"Change {option}.", option)
    return str(value)
