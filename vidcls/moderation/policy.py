"""What to do with a video, given what the network says of it: allow, review or block. Pure, but for save and load.

A policy is fitted on the val split, never on test: a temperature that makes the probabilities honest, and for each
harmful class two thresholds on the calibrated probability, with the band of doubt between them::

    0 ------- allow ------- review ------- review ------- block ------- block ------- 1
                            threshold     (the doubt)     threshold

Thresholds come with a statement about videos to come, not only about the val videos at hand: at 95 % confidence they
meet the wanted recall or precision. That takes val videos to be independent draws of what will come. Videos of one
creator are not independent, so where creators are few the truth is less certain than this says.
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
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import beta, binomtest

from vidcls.errors import UserError
from vidcls.files import write_atomically
from vidcls.metrics.classification import calibration_error, check_predictions
from vidcls.moderation.targets import check_open_share, check_targets
from vidcls.moderation.timeline import video_score

ALLOW, REVIEW, BLOCK = DECISIONS = ("allow", "review", "block")
CONFIDENCE = 0.95  # of every lower bound, one-sided
TEMPERATURES = (0.05, 20.0)
_TINY = float(np.finfo(np.float32).tiny)  # stands for a probability that float32 rounded to 0


@dataclass(frozen=True)
class Policy:
    """A fitted policy, as policy.json holds it.

    ``calibration_error`` is that of `summarise`, ``before`` and ``after`` calibration. Both are measured
    on the videos that the temperature was fitted on, so ``after`` flatters: see test for the truth.
    """

    model: str  # the identity of the network it was fitted for
    classes: tuple[str, ...]  # in the order of the probabilities
    harmless: str
    temperature: float
    review: dict[str, float]  # by harmful class: the calibrated probability from which on a person looks
    block: dict[str, float]  # likewise, from which on the video is blocked; never below review
    targets: dict[str, dict[str, float]]  # the recall and precision that were asked for
    support: dict[str, int]  # how many videos of each class it was fitted on
    calibration_error: dict[str, float]

    @property
    def identity(self) -> str:
        """The first 12 hex digits of the sha256 of everything above, as canonical JSON."""
        return _identity(asdict(self))


class Decision(NamedTuple):
    """What to do with one video, and why; the reason is "" where it is allowed."""

    decision: str
    reason: str


def fit_temperature(probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"]) -> float:
    """The T in [0.05, 20] under which softmax(log(p) / T) gives the labels the highest likelihood.

    Temperature scaling (Guo et al. 2017, "On calibration of modern neural networks", section 4.2). T > 1 makes the
    network less sure, T < 1 surer; which class is the most probable stays as it is.

    T is 1 where the true class is the most probable one in every row, for then labels cannot tell how sure to be: the
    likelihood only grows as T falls, down to a "certain" for every video.

    Example:
        >>> p = np.array([[0.99, 0.01], [0.99, 0.01], [0.99, 0.01], [0.99, 0.01]])  # so sure, and right in 3 of 4:
        >>> T = fit_temperature(p, np.array([0, 0, 0, 1]))
        >>> calibrate(p, T)[0].round(3).tolist()
        [0.75, 0.25]
    """
    if len(labels) == 0 or not np.isfinite(probabilities).all():
        raise ValueError(f"expected finite probabilities of at least one video; got {probabilities}")
    logs, rows = _logs(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logs / math.exp(log_temperature), axis=1)[rows, labels].mean())

    if (logs[rows, labels] == logs.max(axis=1)).all():
        return 1.0
    low, high = map(math.log, TEMPERATURES)
    # The loss is convex in 1 / T, so it has one minimum in log T and a bounded search finds it.
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x)


def calibrate(probabilities: Float[np.ndarray, "*N K"], temperature: float) -> Float[np.ndarray, "*N K"]:
    """softmax(log(p) / temperature), in float64: of one video or of many, with the same bits either way."""
    calibrated: np.ndarray = softmax(_logs(probabilities) / temperature, axis=-1)
    return calibrated


def review_threshold(
    scores: Float[np.ndarray, "N"],
    positives: Bool[np.ndarray, "N"],
    recall: float,
    confidence: float = CONFIDENCE,
    *,
    name: str,
) -> float:
    """The highest threshold that misses few enough of the class, with confidence: P(score >= threshold) >= recall.

    It is the k-th highest score among the positives, for the least k whose lower bound (Clopper and Pearson 1934, one
    sided) of k hits in n is at least ``recall``. As an order statistic it is a tolerance limit (Wilks 1941,
    "Determination of sample sizes for setting tolerance limits"): k is settled before the scores are seen, so the
    confidence holds whatever their distribution, and choosing costs nothing. Ties only add to the recall.

    ``scores`` are the calibrated probabilities of the class, ``positives`` the videos that are of it, ``recall`` is in
    (0, 1), and ``name`` is the class, for the message.

    Raises:
        UserError: too few positives: even with no miss at all, it takes n >= log(1 - confidence) / log(recall).

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
    """The lowest score at which the lower bound of precision, one-sided Clopper-Pearson, is at least ``precision``.

    Of the n videos that score at least as high, k are of the class; the bound is that of k hits in n. Each bound holds
    at its own threshold; the lowest of all that pass is chosen with the labels in view, which is optimistic: a lucky
    run of labels is looked for. In simulations (200 to 5000 videos, normal scores) the chosen threshold fell short of
    the wanted precision in 2 to 6 % of the draws for a network that separates the classes, up to 9 % for one that
    hardly does, rather than in the nominal 5 %. Look at ``harmless_blocked`` on test.

    The arguments are those of `review_threshold`, with a ``precision`` in (0, 1).

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
        )
    return float(ranked[passing[-1]])


def fit_policy(
    probabilities: Float[np.ndarray, "N K"],
    labels: Int[np.ndarray, "N"],
    classes: Sequence[str],
    harmless: str,
    targets: Mapping[str, Any],
    doubt: float | int,
    model: str,
) -> Policy:
    """The policy that meets the ``targets`` on the given (val) videos; see `Policy`.

    The thresholds of a harmful class, on its calibrated probability:

    - a recall gives its review threshold, a precision its block threshold (`review_threshold`, `block_threshold`);
    - with one of the two alone, the other threshold lies ``doubt`` above or below it, within [0, 1];
    - with both, the band is what lies between them. Where review would be above block, both wishes are met with room
      to spare: then both thresholds are the block threshold, at which the precision was shown to hold and the recall
      is at least what was asked, and no video needs a person for this class;
    - with neither, they are 0.5 - doubt / 2 and 0.5 + doubt / 2.

    The temperature is fitted on the same videos as the thresholds. With two classes it leaves their order as it is,
    and so costs the bounds nothing; with more, the one number it takes from the data is neglected.

    ``probabilities`` are the network's own, ``labels`` in [0, K), and ``classes`` names the columns. ``targets`` is
    ``{class: {"recall": r, "precision": p}}``, either or both, for any harmful class. ``model`` names the network.

    Raises:
        UserError: unknown or harmless classes among the targets, values outside (0, 1), wishes that the videos cannot
            support.
        ValueError: arrays that do not fit together, as in `vidcls.metrics.classification.summarise`.
    """
    wishes = check_targets(classes, harmless, targets)
    check_open_share("policy.doubt", doubt)
    check_predictions(probabilities, labels, np.zeros(len(labels)), classes)
    before = calibration_error(probabilities, labels)
    temperature = fit_temperature(probabilities, labels)
    calibrated = calibrate(probabilities, temperature)
    review, block = {}, {}
    for column, name in enumerate(classes):
        if name == harmless:
            continue
        scores, positives, wish = calibrated[:, column], labels == column, wishes.get(name, {})
        low = review_threshold(scores, positives, wish["recall"], name=name) if "recall" in wish else None
        high = block_threshold(scores, positives, wish["precision"], name=name) if "precision" in wish else None
        review[name], block[name] = _band(low, high, doubt)
    support = {name: int((labels == column).sum()) for column, name in enumerate(classes)}
    error = {"before": before, "after": calibration_error(calibrated, labels)}
    return Policy(model, tuple(classes), harmless, temperature, review, block, wishes, support, error)


def harmful_scores(
    policy: Policy, probabilities: Float[np.ndarray, "W K"], how: str = "max", k: int = 3
) -> dict[str, float]:
    """The calibrated score of each harmful class, from the network's own probabilities in a video's W windows.

    Each window is calibrated by itself, then `video_score` makes one score of them, by ``how`` and
    ``k``. The thresholds were fitted on videos of one window; where a video has many, ``max`` gives a class as many
    chances to be found, and to be found wrongly.
    """
    found = video_score(calibrate(probabilities, policy.temperature), how, k).tolist()
    return {name: score for name, score in zip(policy.classes, found, strict=True) if name != policy.harmless}


def decide(
    policy: Policy, probabilities: Float[np.ndarray, "*W K"], status: str, reason: str, how: str = "max", k: int = 3
) -> Decision:
    """What to do with one video, from the network's own (uncalibrated) probabilities, in one window or in W.

    A ``status`` other than ``ok`` is for a person to see, with its ``reason``; ``probabilities`` may then be anything.
    So are probabilities that are none, such as NaN. ``how`` and ``k`` are those of `harmful_scores`.

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
    sound = (windows.min(axis=1) >= 0) & (np.abs(windows.sum(axis=1, dtype=np.float64) - 1) <= 1e-2)
    if not sound.all():
        return Decision(REVIEW, f"the network gave no probabilities: {windows[~sound][0].tolist()}")
    found = harmful_scores(policy, windows, how, k)
    if not all(map(math.isfinite, found.values())):
        return Decision(REVIEW, f"calibration gave no probabilities: {found}")
    for decision, thresholds in ((BLOCK, policy.block), (REVIEW, policy.review)):
        over = [f"{name} {found[name]:.3f} >= {at:.3f}" for name, at in thresholds.items() if found[name] >= at]
        if over:
            return Decision(decision, "; ".join(over))
    return Decision(ALLOW, "")


def policy_report(decisions: Sequence[str], labels: Sequence[str], harmless: str) -> dict[str, Any]:
    """What a policy did to videos whose class is known, in plain Python types.

    - ``n``, ``review_load``: the share of videos that a person has to see.
    - ``harmful_allowed``, ``harmless_blocked``: ``{count, of, rate, ci95}``, where ``of`` counts the videos of that
      kind and ``ci95`` is Wilson's interval (1927) of ``count / of``; both are None where ``of`` is 0.
    - ``confusion``: ``{label: {decision: count}}``.

    Raises:
        ValueError: no videos, lengths that differ, or a decision that is none.
    """
    if not decisions or len(decisions) != len(labels) or not set(decisions) <= set(DECISIONS):
        raise ValueError(f"expected one of {DECISIONS} per video, for {len(labels)} videos; got {list(decisions)}")
    pairs = list(zip(labels, decisions, strict=True))
    return {
        "n": len(pairs),
        "review_load": sum(decision == REVIEW for decision in decisions) / len(pairs),
        "harmful_allowed": _rate([decision == ALLOW for label, decision in pairs if label != harmless]),
        "harmless_blocked": _rate([decision == BLOCK for label, decision in pairs if label == harmless]),
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
        UserError: no such file, a file that is no policy, one that was changed since, or one for another network.
    """
    again = "Fit it again: python evaluate.py run=DIR policy.harmless=CLASS."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no file, not UTF-8, not JSON
        raise UserError("a policy.json", f"{path}, which cannot be read ({error})", again) from error
    if not isinstance(content, dict) or set(content) != {"identity", *(field.name for field in fields(Policy))}:
        raise UserError("a policy.json", f"{path}, which holds something else", again)
    written = content.pop("identity")
    if written != _identity(content):
        raise UserError(f"a policy as it was fitted ({written})", f"{path}, which was changed since", again)
    policy = Policy(**{**content, "classes": tuple(content["classes"])})
    if policy.classes != tuple(classes):
        raise UserError(f"a policy for the classes {', '.join(classes)}", f"one for {', '.join(policy.classes)}", again)
    if policy.model != model:
        raise UserError(f"a policy for the network {model}", f"{path}, one for {policy.model}", again)
    return policy


def _logs(probabilities: np.ndarray) -> np.ndarray:
    """log(p) in float64. C order, so that a row is summed in the same order alone as among others."""
    logs: np.ndarray = np.log(np.maximum(np.ascontiguousarray(probabilities, dtype=np.float64), _TINY))
    return logs


def _lower_bound(hits: Int[np.ndarray, "N"], n: Int[np.ndarray, "N"] | int, confidence: float) -> np.ndarray:
    """Clopper and Pearson's one-sided lower bound of a share, having seen ``hits`` in ``n``; 0 without a hit."""
    return np.where(hits > 0, beta.ppf(1 - confidence, np.maximum(hits, 1), n - hits + 1), 0.0)


def _needed(share: float, confidence: float) -> int:
    return math.ceil(math.log(1 - confidence) / math.log(share))


def _remedy(name: str, kind: str, best: float) -> str:
    supported = math.floor(best * 1000) / 1000  # what the videos at hand do support, rounded so that they still do
    otherwise = f", or set policy.target.{name}.{kind}={supported:g} or less" if supported else ""
    return f"Add val videos of {name!r}{otherwise}."


def _band(low: float | None, high: float | None, doubt: float) -> tuple[float, float]:
    """The review and block thresholds, from those that the targets give; see `fit_policy`."""
    if low is None:
        return (0.5 - doubt / 2, 0.5 + doubt / 2) if high is None else (max(0.0, high - doubt), high)
    return (low, min(1.0, low + doubt)) if high is None else (min(low, high), high)


def _rate(events: list[bool]) -> dict[str, Any]:
    count, of = sum(events), len(events)
    if not of:
        return {"count": 0, "of": 0, "rate": None, "ci95": None}
    interval = binomtest(count, of).proportion_ci(confidence_level=0.95, method="wilson")
    return {"count": count, "of": of, "rate": count / of, "ci95": [float(interval.low), float(interval.high)]}


def _identity(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
