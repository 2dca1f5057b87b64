"""The options ``policy.*``, checked against the classes of a run. Needs neither NumPy nor SciPy."""

from collections.abc import Mapping, Sequence
from typing import Any

from vidcls.errors import UserError, check_number


def check_targets(classes: Sequence[str], safe_class: str, targets: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The ``targets`` of `vidcls.moderation.policy.fit_policy` as plain values.

    Raises:
        UserError: a class is unknown, or a target is no number between 0 and 1.
    """
    if safe_class not in classes:
        expected = f"policy.safe_class to be one of {', '.join(classes)}"
        raise UserError(expected, repr(safe_class), "Change policy.safe_class.", "policy.safe_class")
    harmful = [name for name in classes if name != safe_class]
    for name, target in targets.items():
        if name not in harmful:
            got = f"{name!r}, which is policy.safe_class" if name == safe_class else repr(name)
            expected = f"policy.target to name harmful classes, of {', '.join(harmful)}"
            raise UserError(expected, got, "Change its name.", "policy.target")
        if not isinstance(target, Mapping) or not set(target) <= {"recall", "precision"}:
            got = ", ".join(map(str, target)) if isinstance(target, Mapping) else repr(target)
            expected = f"policy.target.{name} to hold recall, precision or both"
            raise UserError(expected, got, f"Set policy.target.{name}.recall=0.95.", f"policy.target.{name}")
        for metric, value in target.items():
            check_number(f"policy.target.{name}.{metric}", value, 0.0, 1.0, open_ends=True)
    return {name: {metric: float(value) for metric, value in target.items()} for name, target in targets.items()}
