"""Probabilities to decisions: allow, review or block. Pure, but for `save_policy` and `load_policy`.

A policy holds a temperature and, for each harmful class, two thresholds on the calibrated probability. Targets hold
with 95 % confidence on future videos from the same distribution as val; docs/policy.md has the statistics::

    0 ------- allow ------- review ------- review ------- block ------- block ------- 1
                            threshold  (review margin)    threshold
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from vidcls.errors import UserError
from vidcls.files import write_atomically
from vidcls.metrics.calibration import calibrate, calibration_error, fit_temperature
from vidcls.metrics.classification import check_predictions
from vidcls.moderation.targets import check_open_share, check_targets
from vidcls.moderation.timeline import video_score

ALLOW, REVIEW, BLOCK = DECISIONS = ("allow", "review", "block")
CONFIDENCE = 0.95  # of every lower bound, one-sided


@dataclass(frozen=True)
class Policy:
    """A fitted policy, as policy.json holds it.

    Attributes:
        model: the identity of the network it was fitted for.
        classes: in the order of the probabilities.
        safe_class: the class that needs no action.
        temperature: see `vidcls.metrics.calibration.fit_temperature`.
        review: by harmful class, the calibrated probability from which on a person looks at a video.
        block: likewise, from which on it is blocked; never below review.
        targets: the recall and precision that were asked for.
        support: how many videos of each class it was fitted on.
        calibration_error: ``before`` and ``after`` calibration, on the videos the temperature was fitted on: ``after``
            is optimistic.
    """

    model: str
    classes: tuple[str, ...]
    safe_class: str
    temperature: float
    review: dict[str, float]
    block: dict[str, float]
    targets: dict[str, dict[str, float]]
    support: dict[str, int]
    calibration_error: dict[str, float]

    @property
    def identity(self) -> str:
        """The first 12 hex digits of the sha256 of everything above, as canonical JSON."""
        return _identity(asdict(self))


class Decision(NamedTuple):
    """What to do with one video, and why; the reason is "" where it is allowed."""

    decision: str
    reason: str


def review_threshold(
    scores: Float[np.ndarray, "N"],
    positives: Bool[np.ndarray, "N"],
    recall: float,
    confidence: float = CONFIDENCE,
    *,
    name: str,
) -> float:
    """The highest threshold with P(score >= threshold) >= ``recall`` for the class, at ``confidence``.

    An order statistic of the positives' scores (Wilks 1941), so the confidence holds for any distribution of scores.

    Args:
        scores: calibrated probabilities of the class.
        positives: which videos are of the class.
        recall: in (0, 1).
        confidence: one-sided.
        name: of the class, for the message.

    Raises:
        UserError: too few positives: even if none is missed, n >= log(1 - confidence) / log(recall) are needed.

    Example:
        >>> scores = np.linspace(0, 1, 101)
        >>> review_threshold(scores, scores >= 0.0, 0.95, name="harmful")  # 1 miss in 101, 2 would be too many
        0.01
    """
    n = int(positives.sum())
    enough = np.flatnonzero(_lower_bound(np.arange(1, n + 1), n, confidence) >= recall)
    if len(enough) == 0:
        best = (1 - confidence) ** (1 / n) if n else 0.0
        raise UserError(
            f"at least {_needed(recall, confidence)} val videos of {name!r} for policy.target.{name}.recall={recall:g} "
            f"at {confidence:.0%} confidence, with none of them missed",
            str(n),
            _remedy(name, "recall", best),
            "recall-not-supported",
        )
    return float(np.sort(scores[positives])[::-1][enough[0]])


def block_threshold(
    scores: Float[np.ndarray, "N"],
    positives: Bool[np.ndarray, "N"],
    precision: float,
    confidence: float = CONFIDENCE,
    *,
    name: str,
) -> float:
    """The lowest score whose lower bound of the precision (Clopper and Pearson 1934) is at least ``precision``.

    Arguments as for `review_threshold`.

    Raises:
        UserError: no threshold will do: too few videos of the class, or too many others that score as high.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positives[order])
    bounds = _lower_bound(hits, np.arange(1, len(scores) + 1), confidence)
    bounds[:-1][ranked[:-1] == ranked[1:]] = 0.0  # videos that tie are blocked together: only the last counts them all
    passing = np.flatnonzero(bounds >= precision)
    if len(passing) == 0:
        best = float(bounds.max(initial=0.0))
        raise UserError(
            f"at least {_needed(precision, confidence)} val videos of {name!r} that score above all others for "
            f"policy.target.{name}.precision={precision:g} at {confidence:.0%} confidence (more with a miss)",
            f"{int(positives.sum())} val videos of it, and no threshold with a bound above {best:.3f}",
            _remedy(name, "precision", best),
            "precision-not-supported",
        )
    return float(ranked[passing[-1]])


def fit_policy(
    probabilities: Float[np.ndarray, "N K"],
    labels: Int[np.ndarray, "N"],
    classes: Sequence[str],
    safe_class: str,
    targets: Mapping[str, Any],
    review_margin: float | int,
    model: str,
) -> Policy:
    """The policy that meets the ``targets`` on the given (val) videos.

    A recall sets the review threshold of its class, a precision the block threshold. With one of the two, the other
    threshold is ``review_margin`` away; with neither, they are 0.5 -+ ``review_margin`` / 2.

    Args:
        probabilities: the network's own, uncalibrated.
        labels: in [0, K).
        classes: the K names, in the order of the columns.
        safe_class: the class that needs no action.
        targets: ``{class: {"recall": r, "precision": p}}``, either or both, for any harmful class.
        review_margin: between 0 and 1.
        model: the identity of the network.

    Raises:
        UserError: unknown or safe classes among the targets, values outside (0, 1), targets that the videos cannot
            support.
        ValueError: arrays that do not fit together.
    """
    checked = check_targets(classes, safe_class, targets)
    check_open_share("policy.review_margin", review_margin)
    check_predictions(probabilities, labels, np.zeros(len(labels)), classes)
    before = calibration_error(probabilities, labels)
    temperature = fit_temperature(probabilities, labels)
    calibrated = calibrate(probabilities, temperature)
    review, block = {}, {}
    for column, name in enumerate(classes):
        if name == safe_class:
            continue
        scores, positives, target = calibrated[:, column], labels == column, checked.get(name, {})
        low = review_threshold(scores, positives, target["recall"], name=name) if "recall" in target else None
        high = block_threshold(scores, positives, target["precision"], name=name) if "precision" in target else None
        review[name], block[name] = _band(low, high, review_margin)
    support = {name: int((labels == column).sum()) for column, name in enumerate(classes)}
    error = {"before": before, "after": calibration_error(calibrated, labels)}
    return Policy(model, tuple(classes), safe_class, temperature, review, block, checked, support, error)


def harmful_scores(
    policy: Policy, probabilities: Float[np.ndarray, "W K"], aggregation: str = "max", top_k: int = 3
) -> dict[str, float]:
    """The calibrated score of each harmful class, from the network's own probabilities in a video's W windows.

    Each window is calibrated by itself, then `vidcls.moderation.timeline.video_score` aggregates them. The thresholds
    were fitted on videos of one window: with ``max``, each further window is another chance of a false alarm.
    """
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
    """What to do with one video, from the network's own (uncalibrated) probabilities, in one window or in W.

    A ``status`` other than ``ok`` is always for review, with its ``reason``, whatever the ``probabilities``. So is a
    video whose probabilities are not valid, such as NaN. The last two arguments are those of `harmful_scores`.

    Example:
        >>> nothing = {"targets": {}, "support": {}, "calibration_error": {}}
        >>> policy = Policy("m", ("safe", "bad"), "safe", 1.0, review={"bad": 0.4}, block={"bad": 0.8}, **nothing)
        >>> decide(policy, np.array([0.1, 0.9]), "ok", "")
        Decision(decision='block', reason='bad 0.900 >= 0.800')
        >>> decide(policy, np.array([0.9, 0.1]), "partial", "the file ends early").decision
        'review'
    """
    if status != "ok":
        return Decision(REVIEW, f"{status}: {reason}" if reason else status)
    windows = np.atleast_2d(probabilities)
    if windows.shape[1] != len(policy.classes):
        raise ValueError(f"expected one probability for each of {policy.classes}; got {windows.shape[1]}")
    # 1e-2 leaves room for a softmax in bfloat16. Written so that NaN fails it.
    valid = (windows.min(axis=1) >= 0) & (np.abs(windows.sum(axis=1, dtype=np.float64) - 1) <= 1e-2)
    if not valid.all():
        return Decision(REVIEW, f"the network returned no valid probabilities: {windows[~valid][0].tolist()}")
    found = harmful_scores(policy, windows, aggregation, top_k)
    if not all(map(math.isfinite, found.values())):
        return Decision(REVIEW, f"calibration gave no valid probabilities: {found}")
    for decision, thresholds in ((BLOCK, policy.block), (REVIEW, policy.review)):
        over = [f"{name} {found[name]:.3f} >= {at:.3f}" for name, at in thresholds.items() if found[name] >= at]
        if over:
            return Decision(decision, "; ".join(over))
    return Decision(ALLOW, "")


def policy_report(decisions: Sequence[str], labels: Sequence[str], safe_class: str) -> dict[str, Any]:
    """The outcome of a policy for videos whose class is known, in plain Python types.

    - ``n``, ``review_load``: the fraction of videos that a person has to review.
    - ``harmful_allowed``, ``safe_blocked``: ``{count, of, rate, ci95}``, where ``of`` counts the videos of that
      kind and ``ci95`` is Wilson's interval (1927) of ``count / of``; both are None where ``of`` is 0.
    - ``confusion``: ``{label: {decision: count}}``.

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


def save_policy(policy: Policy, path: Path) -> None:
    """Writes ``policy`` as JSON, with its identity; every float reads back as it was."""
    content = {**asdict(policy), "identity": policy.identity}
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def load_policy(path: Path, classes: Sequence[str], model: str) -> Policy:
    """The policy at ``path``, for the network ``model`` with these ``classes``.

    Raises:
        UserError: no such file, a file that is no policy, one that was changed since it was fitted, or one for another
            network.
    """

    def refuse(expected: str, got: str) -> UserError:
        remedy = "Fit it again: python evaluate.py run=DIR policy.safe_class=CLASS."
        return UserError(expected, got, remedy, "policy-file")

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no file, not UTF-8, not JSON
        raise refuse("a policy.json", f"{path}, which cannot be read ({error})") from error
    identity = content.pop("identity", None) if isinstance(content, dict) else None
    if identity is None or identity != _identity(content):
        raise refuse("a policy.json as it was fitted", f"{path}, which holds something else or was changed since")
    if "harmless" in content:  # of older runs
        content["safe_class"] = content.pop("harmless")
    if set(content) != {field.name for field in fields(Policy)}:
        raise refuse("a policy.json", f"{path}, which holds something else")
    policy = Policy(**{**content, "classes": tuple(content["classes"])})
    if policy.classes != tuple(classes):
        raise refuse(f"a policy for the classes {', '.join(classes)}", f"one for {', '.join(policy.classes)}")
    if policy.model != model:
        raise refuse(f"a policy for the network {model}", f"{path}, one for {policy.model}")
    return policy


def _lower_bound(hits: Int[np.ndarray, "N"], n: Int[np.ndarray, "N"] | int, confidence: float) -> np.ndarray:
    """Clopper and Pearson's one-sided lower bound of a proportion, from ``hits`` in ``n``; 0 without a hit."""
    from scipy.stats import beta  # only here, as its import takes a second, and predict.py needs no fit

    return np.where(hits > 0, beta.ppf(1 - confidence, np.maximum(hits, 1), n - hits + 1), 0.0)


def _needed(share: float, confidence: float) -> int:
    return math.ceil(math.log(1 - confidence) / math.log(share))


def _remedy(name: str, kind: str, best: float) -> str:
    supported = math.floor(best * 1000) / 1000  # what these videos do support, rounded down
    otherwise = f", or set policy.target.{name}.{kind}={supported:g} or less" if supported else ""
    return f"Add val videos of {name!r}{otherwise}."


def _band(low: float | None, high: float | None, margin: float) -> tuple[float, float]:
    """The review and block thresholds, from those that the targets give; see `fit_policy`."""
    if low is None:
        return (0.5 - margin / 2, 0.5 + margin / 2) if high is None else (max(0.0, high - margin), high)
    return (low, min(1.0, low + margin)) if high is None else (min(low, high), high)


def _rate(events: list[bool]) -> dict[str, Any]:
    count, of = sum(events), len(events)
    if not of:
        return {"count": 0, "of": 0, "rate": None, "ci95": None}
    from scipy.stats import binomtest

    interval = binomtest(count, of).proportion_ci(confidence_level=0.95, method="wilson")
    return {"count": count, "of": of, "rate": count / of, "ci95": [float(interval.low), float(interval.high)]}


def _identity(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
