"""Probabilities to decisions: allow, review or block. Pure, but for `save_policy` and `load_policy`.

A policy holds a temperature and, for each harmful class, two thresholds on the calibrated probability::

    0 ------- allow ------- review ------- review ------- block ------- block ------- 1
                            threshold  (review margin)    threshold
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vidcls.errors import UserError, check_number, one_line
from vidcls.files import write_json
from vidcls.metrics.calibration import TEMPERATURES, calibrate, fit_temperature, reliability
from vidcls.metrics.classification import check_predictions, wilson_interval
from vidcls.moderation.aggregation import video_score
from vidcls.moderation.thresholds import block_threshold, review_threshold

ALLOW, REVIEW, BLOCK = DECISIONS = ("allow", "review", "block")


@dataclass(frozen=True)
class Policy:
    """A fitted policy, as policy.json holds it.

    Raises:
        ValueError: values that no fit gives, such as thresholds out of range.
    """

    model: str  # the identity of the network it was fitted for
    classes: tuple[str, ...]  # in the order of the probabilities
    safe_class: str  # needs no action
    temperature: float
    review: dict[str, float]  # by harmful class, the calibrated probability from which on a person looks at a video
    block: dict[str, float]  # from which on it is blocked; never below review
    targets: dict[str, dict[str, float]]  # the requested recall and precision, by harmful class
    support: dict[str, int]  # the number of videos of each class that it was fitted on
    calibration_error: dict[str, float]  # before and after calibration, on the videos it was fitted on

    def __post_init__(self) -> None:
        harmful = set(self.classes) - {self.safe_class}
        if len(harmful) != len(self.classes) - 1 or not harmful == set(self.review) == set(self.block):
            raise ValueError("expected a review and a block threshold for each class but the safe one")
        mappings: list[Mapping[str, float]] = [self.review, self.block, self.support, self.calibration_error]
        mappings += self.targets.values()
        for value in (self.temperature, *(value for mapping in mappings for value in mapping.values())):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"expected finite numbers; got {value!r}")
        if set(self.calibration_error) != {"before", "after"}:
            raise ValueError(f"expected calibration errors before and after; got {self.calibration_error}")
        if not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            raise ValueError(f"expected a temperature in {list(TEMPERATURES)}; got {self.temperature}")
        for name, review in self.review.items():
            if not 0 <= review <= self.block[name] <= 1:
                raise ValueError(f"expected 0 <= review <= block <= 1 for {name}; got {review} and {self.block[name]}")

    @property
    def identity(self) -> str:
        """The first 12 hex digits of the SHA-256 of the fields as canonical JSON."""
        return _identity(asdict(self))


class Decision(NamedTuple):
    """The decision about one video, and the reason, which is "" for `ALLOW`."""

    decision: str
    reason: str


def fit_policy(
    probabilities: Float[np.ndarray, "N K"],
    labels: Int[np.ndarray, "N"],
    classes: Sequence[str],
    safe_class: str,
    targets: Mapping[str, Any],
    review_margin: float | int,
    model: str,
    split: str = "val",
) -> Policy:
    """The policy that meets the ``targets`` on videos of a ``split``, from the network's uncalibrated probabilities.

    A target ``{class: {"recall": r, "precision": p}}`` sets the review threshold of the class by the recall, and the
    block threshold by the precision. With one of the two, the other threshold is ``review_margin`` away; with neither,
    they are 0.5 -+ ``review_margin`` / 2. Without a recall, the review threshold is at most 0.5 / (K - 1): a video that
    is more probably harmful than safe, all harmful classes together, is never allowed.

    Raises:
        UserError: targets out of range, of unknown or safe classes, or with too few videos.
        ValueError: arrays that do not fit together.
    """
    checked = check_targets(classes, safe_class, targets)
    check_number("policy.review_margin", review_margin, 0.0, 1.0, open_ends=True)
    check_predictions(probabilities, labels, np.zeros(len(labels)), classes)
    temperature = fit_temperature(probabilities, labels)
    calibrated = calibrate(probabilities, temperature)
    review, block = {}, {}
    for column, name in enumerate(classes):
        if name == safe_class:
            continue
        scores, positives, target = calibrated[:, column], labels == column, checked.get(name, {})
        of = {"name": name, "split": split}
        low = review_threshold(scores, positives, target["recall"], **of) if "recall" in target else None
        high = block_threshold(scores, positives, target["precision"], **of) if "precision" in target else None
        review[name], block[name] = _band(low, high, review_margin, 0.5 / (len(classes) - 1))
    support = {name: int((labels == column).sum()) for column, name in enumerate(classes)}
    error = {"before": reliability(probabilities, labels).error, "after": reliability(calibrated, labels).error}
    return Policy(model, tuple(classes), safe_class, temperature, review, block, checked, support, error)


def check_targets(classes: Sequence[str], safe_class: str, targets: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The ``targets`` of `fit_policy` as plain values; raises `UserError` for unknown classes and other values."""
    if safe_class not in classes:
        expected = f"policy.safe_class to be one of {', '.join(classes)}"
        raise UserError(expected, repr(safe_class), "Give policy.safe_class=CLASS.", "policy.safe_class")
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


def _band(low: float | None, high: float | None, margin: float, most: float) -> tuple[float, float]:
    if low is None:
        below = 0.5 - margin / 2 if high is None else max(0.0, high - margin)
        return min(below, most), 0.5 + margin / 2 if high is None else high
    return (low, min(1.0, low + margin)) if high is None else (min(low, high), high)


def harmful_scores(
    policy: Policy, probabilities: Float[np.ndarray, "W K"], aggregation: str = "max", top_k: int = 3
) -> dict[str, float]:
    """The `video_score` of each harmful class, after calibration of the network's ``probabilities``."""
    found = video_score(calibrate(probabilities, policy.temperature), aggregation, top_k).tolist()
    return {name: score for name, score in zip(policy.classes, found, strict=True) if name != policy.safe_class}


def decide(
    policy: Policy,
    probabilities: Float[np.ndarray, "*W K"],
    status: str,
    reason: str,
    aggregation: str = "max",
    top_k: int = 3,
) -> Decision:
    """The decision about one video, from the network's uncalibrated probabilities in one window or in W.

    A video with a ``status`` other than ``ok``, without windows or with invalid probabilities is always for review.
    """
    if status != "ok":
        return Decision(REVIEW, f"{status}: {reason}" if reason else status)
    windows = np.atleast_2d(probabilities)
    if windows.shape[1] != len(policy.classes):
        raise ValueError(f"expected one probability for each of {policy.classes}; got {windows.shape[1]}")
    # 1e-2 leaves room for a softmax in bfloat16. Written so that NaN fails it.
    valid = (windows.min(axis=1) >= 0) & (np.abs(windows.sum(axis=1, dtype=np.float64) - 1) <= 1e-2)
    if len(windows) == 0 or not valid.all():
        return Decision(REVIEW, f"the network returned no valid probabilities: {windows[~valid][:1].ravel().tolist()}")
    found = harmful_scores(policy, windows, aggregation, top_k)
    for decision, thresholds in ((BLOCK, policy.block), (REVIEW, policy.review)):
        over = [f"{name} {found[name]:.3f} >= {at:.3f}" for name, at in thresholds.items() if found[name] >= at]
        if over:
            return Decision(decision, "; ".join(over))
    return Decision(ALLOW, "")


def policy_report(decisions: Sequence[str], labels: Sequence[str], safe_class: str) -> dict[str, Any]:
    """The outcome of a policy for videos whose class is known, JSON-ready.

    ``review_load`` is the fraction for review. ``harmful_allowed`` and ``safe_blocked`` are ``{count, of, rate,
    ci95}``: ``of`` is the number of harmful or safe videos; rate and Wilson's interval (1927) are None if it is 0.

    Raises:
        ValueError: no videos, lengths that differ, or an unknown decision.
    """
    if not decisions or len(decisions) != len(labels) or not set(decisions) <= set(DECISIONS):
        raise ValueError(f"expected one of {DECISIONS} per video, for {len(labels)} videos; got {list(decisions)}")
    pairs = list(zip(labels, decisions, strict=True))
    return {
        "n": len(pairs),
        "review_load": sum(decision == REVIEW for decision in decisions) / len(pairs),
        "harmful_allowed": _rate([decision == ALLOW for label, decision in pairs if label != safe_class]),
        "safe_blocked": _rate([decision == BLOCK for label, decision in pairs if label == safe_class]),
        "confusion": {
            name: {decision: pairs.count((name, decision)) for decision in DECISIONS} for name in sorted(set(labels))
        },
    }


def _rate(events: list[bool]) -> dict[str, Any]:
    count, of = sum(events), len(events)
    if not of:
        return {"count": 0, "of": 0, "rate": None, "ci95": None}
    return {"count": count, "of": of, "rate": count / of, "ci95": wilson_interval(count, of)}


def policy_notes(policy: Policy, fitted_on: str) -> Iterator[str]:
    """Warnings about a temperature at a bound, and about what the policy may allow, or if that is nothing."""
    if policy.temperature > 0.99 * TEMPERATURES[1]:
        yield (
            f"Note: the {fitted_on} predictions are no better than guessing, so the network's scores say nothing: do "
            "not use this policy."
        )
    if policy.temperature < 1.01 * TEMPERATURES[0]:
        yield (
            f"Note: the temperature is at its lower bound of {TEMPERATURES[0]:g}: on the {fitted_on} predictions the "
            "network is far less confident than accurate, as after too little training. Calibrated, nearly every score "
            "is 0 or 1: train longer before you use this policy."
        )
    for name in policy.classes:
        if policy.support.get(name, 0) == 0:
            so = "its thresholds mean nothing" if name != policy.safe_class else "how many are blocked is not known"
            yield f"Note for {name}: there is no intact {fitted_on} video of it, so {so}."
    allowed, most = sum(policy.review.values()), 0.5 / len(policy.review)
    if everything := [name for name, at in policy.review.items() if at <= 0]:
        yield f"Note: this policy allows no video, as a score of 0 for {', '.join(everything)} is enough for review."
    elif allowed > 0.5 + 1e-9:
        high = ", ".join(f"{name} {at:.3f}" for name, at in policy.review.items() if at > most)
        yield (
            "Note: this policy may allow a video that is more probably harmful than safe, with a probability of up to "
            f"{min(allowed, 1):.2f} for all harmful classes together, as scores are reviewed only from {high} on. Fit "
            "it again with a higher policy.target.CLASS.recall or none: evaluate.py run=DIR policy.safe_class=CLASS."
        )


def save_policy(policy: Policy, path: Path) -> None:
    write_json(path, {**asdict(policy), "identity": policy.identity})


def load_policy(path: Path, classes: Sequence[str], model: str) -> Policy:
    """Reads a policy for the network ``model`` with these ``classes``.

    Raises:
        UserError: the file is missing, damaged, was changed since the policy was fitted, or is for another network.
    """
    expected, got = f"a policy.json for the network {model}", ""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("identity") != _identity(content):
            raise ValueError("it was changed since it was fitted")
        if "harmless" in content:  # of older runs
            content["safe_class"] = content.pop("harmless")
        if missing := {field.name for field in fields(Policy)} ^ set(content):
            raise ValueError(f"{', '.join(sorted(missing))} missing or unknown")
        policy = Policy(**{**content, "classes": tuple(content["classes"])})
        if policy.classes != tuple(classes):
            got = f"one for the classes {', '.join(policy.classes)} instead of {', '.join(classes)}"
        elif policy.model != model:
            got = f"one for the network {policy.model}"
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        got = str(error) or type(error).__name__
    if got:
        remedy = "Fit it again: python evaluate.py run=DIR policy.safe_class=CLASS."
        raise UserError(expected, f"{path}: {one_line(got)}", remedy, "policy-file")
    return policy


def _identity(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
