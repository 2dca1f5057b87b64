"""The policy: what is fitted on val, decisions that never let go, and what they would do to a split."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.policies import CLASSES, bound, draw, policy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax
from scipy.stats import binomtest

from vidcls.errors import UserError
from vidcls.metrics.calibration import TEMPERATURES, calibrate, fit_temperature
from vidcls.metrics.classification import summarise
from vidcls.moderation.policy import (
    decide,
    fit_policy,
    harmful_scores,
    load_policy,
    policy_report,
    save_policy,
)
from vidcls.moderation.thresholds import block_threshold, review_threshold

# Fit


def test_thresholds_of_a_fit() -> None:
    probabilities, labels = draw(3000, 6.0, seed=2, k=3)
    targets = {"harmful": {"recall": 0.9}, "adult": {"precision": 0.9}}
    found = fit_policy(probabilities, labels, CLASSES, "safe", targets, 0.2, "m")
    calibrated = calibrate(probabilities, found.temperature)
    low = review_threshold(calibrated[:, 1], labels == 1, 0.9, name="harmful")
    high = block_threshold(calibrated[:, 2], labels == 2, 0.9, name="adult")
    assert high - 0.2 > 0.25  # a precision says what to block, and nothing of what to allow
    assert found.review == {"harmful": low, "adult": 0.25}
    assert found.block == {"harmful": low + 0.2, "adult": high}
    assert found.support == {name: int((labels == k).sum()) for k, name in enumerate(CLASSES)}
    assert found.targets == targets and found.safe_class == "safe" and found.classes == CLASSES
    # What was asked of the videos at hand is what decisions give them, boundary included.
    rows = [decide(found, row, "ok", "").decision for row in probabilities]
    seen = np.mean([rows[i] != "allow" for i in np.flatnonzero(labels == 1)])
    assert seen >= 0.9
    on_the_edge = int(np.flatnonzero(calibrated[:, 1] == low)[0])
    assert decide(found, probabilities[on_the_edge], "ok", "").decision != "allow"


def test_a_fit_with_both_targets() -> None:
    probabilities, labels = draw(3000, 3.0, seed=2)
    hard = fit_policy(probabilities, labels, ["a", "b"], "a", {"b": {"recall": 0.95, "precision": 0.95}}, 0.2, "m")
    assert hard.review["b"] < hard.block["b"]  # what neither target settles is for a person
    scores = calibrate(probabilities, hard.temperature)[:, 1]
    assert hard.review["b"] == review_threshold(scores, labels == 1, 0.95, name="b")
    assert hard.block["b"] == block_threshold(scores, labels == 1, 0.95, name="b")
    easy = fit_policy(probabilities, labels, ["a", "b"], "a", {"b": {"recall": 0.6, "precision": 0.6}}, 0.2, "m")
    scores = calibrate(probabilities, easy.temperature)[:, 1]
    assert easy.review["b"] == easy.block["b"] == block_threshold(scores, labels == 1, 0.6, name="b")
    assert easy.block["b"] < review_threshold(scores, labels == 1, 0.6, name="b")  # room to spare
    flagged = scores >= easy.review["b"]
    assert bound(int(flagged[labels == 1].sum()), int((labels == 1).sum())) >= 0.6
    assert bound(int((labels == 1)[flagged].sum()), int(flagged.sum())) >= 0.6


def test_a_fit_without_targets_and_at_the_ends() -> None:
    probabilities, labels = draw(300, 3.0, seed=4)
    plain = fit_policy(probabilities, labels, ["a", "b"], "a", {}, 0.5, "m")
    assert plain.review == {"b": 0.25} and plain.block == {"b": 0.75}
    assert fit_policy(probabilities, labels, ["a", "b"], "a", {"b": {}}, 0.5, "m").review == {"b": 0.25}
    wide = fit_policy(probabilities, labels, ["a", "b"], "a", {"b": {"recall": 0.3}}, 0.99, "m")
    assert wide.block == {"b": 1.0}
    wide = fit_policy(probabilities, labels, ["a", "b"], "a", {"b": {"precision": 0.9}}, 0.99, "m")
    assert wide.review == {"b": 0.0}


@settings(deadline=None)
@given(st.integers(2, 20), st.data())
def test_without_a_recall_what_is_more_probably_harmful_than_safe_is_never_allowed(k: int, data: st.DataObject) -> None:
    """Harmful classes share the probability: 19 of 0.049 each leave 0.07 to the safe one."""
    weights = data.draw(hnp.arrays(np.float64, k, elements=st.floats(0.0, 1.0))) + 1e-3
    row, names = weights / weights.sum(), [str(number) for number in range(k)]
    found = fit_policy(np.full((2, k), 1 / k), np.array([0, 1]), names, names[-1], {}, 0.2, "m")
    for temperature in (1.0, *TEMPERATURES):  # the highest, of a network that guesses, makes all scores nearly alike
        decision = decide(replace(found, temperature=temperature), row, "ok", "").decision
        assert calibrate(row, temperature)[-1] > 0.5 - 1e-9 or decision != "allow"
    for safe in (1 / k, min(1 / k + 1e-3, 0.45), 0.45):  # the most probable class, of three or more
        row = np.append(np.full(k - 1, (1 - safe) / (k - 1)), safe)
        assert decide(found, row, "ok", "").decision != "allow"


def test_a_fit_reports_calibration_before_and_after() -> None:
    honest, labels = draw(3000, 2.0, seed=6)
    sure = softmax(np.log(honest) * 3, axis=1)
    found = fit_policy(sure, labels, ["a", "b"], "a", {}, 0.2, "m")
    assert found.calibration_error["before"] == summarise(sure, labels, np.zeros(3000), ["a", "b"])["calibration_error"]
    assert found.calibration_error["before"] > 0.1
    assert found.calibration_error["after"] < 0.03


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"safe_class": "sfae"}, "policy.safe_class"),
        ({"targets": {"gore": {"recall": 0.9}}}, "policy.target"),
        ({"targets": {"safe": {"recall": 0.9}}}, "policy.target"),
        ({"targets": {"adult": {"f1": 0.9}}}, "policy.target.adult"),
        ({"targets": {"adult": 0.9}}, "policy.target.adult"),
        ({"targets": {"adult": {"recall": 1}}}, "policy.target.adult.recall"),
        ({"targets": {"adult": {"recall": 0.0}}}, "policy.target.adult.recall"),
        ({"targets": {"adult": {"precision": 95}}}, "policy.target.adult.precision"),
        ({"targets": {"adult": {"precision": "high"}}}, "policy.target.adult.precision"),
        ({"targets": {"adult": {"recall": math.nan}}}, "policy.target.adult.recall"),
        ({"review_margin": 0.0}, "policy.review_margin"),
        ({"review_margin": 1.5}, "policy.review_margin"),
        ({"targets": {"adult": {"recall": 0.99}}}, "recall-not-supported"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], code: str) -> None:
    probabilities, labels = draw(60, 2.0, seed=0, k=3)
    options: dict[str, Any] = {"safe_class": "safe", "targets": {}, "review_margin": 0.2, "model": "m", **changes}
    with pytest.raises(UserError) as error:
        fit_policy(probabilities, labels, CLASSES, **options)
    assert error.value.code == code


# Decide


@pytest.mark.parametrize(
    ("row", "decision", "reason"),
    [
        ([1.0, 0.0, 0.0], "allow", ""),
        ([0.7501, 0.2499, 0.0], "allow", ""),
        ([0.75, 0.25, 0.0], "review", "harmful 0.250 >= 0.250"),
        ([0.2501, 0.7499, 0.0], "review", "harmful 0.750 >= 0.250"),
        ([0.25, 0.75, 0.0], "block", "harmful 0.750 >= 0.750"),
        ([0.0, 0.5, 0.5], "review", "harmful 0.500 >= 0.250; adult 0.500 >= 0.500"),
        ([0.0, 0.125, 0.875], "block", "adult 0.875 >= 0.875"),
        ([0.51, 0.0, 0.49], "allow", ""),
    ],
)
def test_decide_by_hand(row: list[float], decision: str, reason: str) -> None:
    # At T = 1, log and exp may cost a last bit; a hair on the thresholds' near side keeps the table readable.
    near = policy(
        review={"harmful": 0.25 - 1e-12, "adult": 0.5 - 1e-12}, block={"harmful": 0.75 - 1e-12, "adult": 0.875 - 1e-12}
    )
    assert decide(near, np.array(row), "ok", "") == (decision, reason)


@settings(deadline=None)
@given(hnp.arrays(np.float64, 3, elements=st.floats(0.01, 1)), st.floats(0.5, 20))
def test_a_probability_at_the_threshold_is_over_it(weights: np.ndarray, temperature: float) -> None:
    row = weights / weights.sum()
    at = float(calibrate(row, temperature)[1])
    above, on = ({"harmful": harmful, "adult": 1.0} for harmful in (float(np.nextafter(at, 2)), at))
    assert decide(policy(temperature=temperature, review=on, block=above), row, "ok", "").decision == "review"
    assert decide(policy(temperature=temperature, review=on, block=on), row, "ok", "").decision == "block"
    assert decide(policy(temperature=temperature, review=above, block=above), row, "ok", "").decision == "allow"


def test_decide_calibrates() -> None:
    row = np.array([0.8, 0.2, 0.0])
    assert decide(policy(), row, "ok", "").decision == "allow"
    assert decide(policy(temperature=4.0), row, "ok", "") == ("review", "harmful 0.414 >= 0.250")  # 2^.5 / (2 + 2^.5)


@settings(deadline=None)
@given(hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)), st.text(), st.text())
def test_whatever_is_not_ok_is_reviewed(row: np.ndarray, status: str, reason: str) -> None:
    if status != "ok":
        found = decide(policy(), row, status, reason)
        assert found.decision == "review" and status in found.reason and reason in found.reason


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, 3, elements=st.floats(width=32)), st.integers(0, 2), st.sampled_from([np.nan, np.inf, -1.0])
)
def test_what_is_no_probability_is_reviewed(row: np.ndarray, place: int, value: float) -> None:
    row[place] = value
    assert decide(policy(), row, "ok", "").decision == "review"


@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [1.2, -0.1, -0.1], [2.0, 0.0, 0.0], [np.nan, 0.0, 1.0]])
def test_what_does_not_add_up_is_reviewed(row: list[float]) -> None:
    found = decide(policy(), np.array(row), "ok", "")
    assert found.decision == "review" and "the network returned no valid probabilities" in found.reason


def test_decide_reasons_and_misuse() -> None:
    assert decide(policy(), np.full(3, np.nan), "undecodable", "no frames") == ("review", "undecodable: no frames")
    assert decide(policy(), np.full(3, np.nan), "timeout", "") == ("review", "timeout")
    assert "no valid probabilities: [nan" in decide(policy(), np.full(3, np.nan), "ok", "").reason
    assert decide(policy(), np.empty((0, 3)), "ok", "").decision == "review"  # no window at all
    with pytest.raises(ValueError, match="one probability for each"):
        decide(policy(), np.array([0.5, 0.5]), "ok", "")


def test_many_windows_are_one_score() -> None:
    windows = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0]])  # T = 1: calibrated as they are
    assert harmful_scores(policy(), windows, "max") == pytest.approx({"harmful": 0.8, "adult": 0.0}, abs=1e-9)
    assert decide(policy(), windows, "ok", "") == ("block", "harmful 0.800 >= 0.750")
    assert decide(policy(), windows, "ok", "", "top_k_mean", 2) == ("review", "harmful 0.600 >= 0.250")
    assert decide(policy(), windows, "ok", "", "mean").decision == "review"
    assert decide(policy(), windows[[0, 0]], "ok", "").decision == "allow"
    sick = np.vstack([windows[0], [np.nan, 0.0, 1.0]])  # one window without probabilities is enough
    assert decide(policy(), sick, "ok", "").decision == "review"


def test_each_window_is_calibrated_by_itself() -> None:
    windows, soft = np.array([[0.8, 0.2, 0.0], [0.99, 0.01, 0.0]]), policy(temperature=4.0)
    assert harmful_scores(soft, windows)["harmful"] == float(calibrate(windows[0], 4.0)[1])


# Guarantees on the videos at hand, whatever they are


@st.composite
def val_videos(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with frequent ties, zeros and ones, and labels; classes may be absent, or the only one."""
    n = draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.choice(draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)), size=n)
    weights = rng.integers(0, 4, size=(n, 3)) + 3.0 * np.eye(3)[labels] * (rng.random((n, 1)) < draw(st.floats(0, 1)))
    weights[weights.sum(axis=1) == 0, 0] = 1.0
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32), labels


@settings(deadline=None, max_examples=100)
@given(val_videos())
def test_calibration_never_makes_val_less_likely_and_keeps_the_order_of_classes(
    videos: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = videos
    temperature = fit_temperature(probabilities, labels)
    assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1]

    def loss(at: float) -> float:
        return float(-np.log(calibrate(probabilities, at)[np.arange(len(labels)), labels] + 1e-300).mean())

    of_label = probabilities[np.arange(len(labels)), labels]
    if (of_label < probabilities.max(axis=1)).any():  # else 1, as the likelihood has no maximum
        assert loss(temperature) <= min(map(loss, np.geomspace(*TEMPERATURES, 50))) + 1e-6
    calibrated = calibrate(probabilities, temperature)
    for row, before in zip(calibrated, probabilities, strict=True):
        assert (np.diff(row[np.argsort(before, kind="stable")]) >= 0).all()


@settings(deadline=None, max_examples=60)
@given(val_videos(), st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.sampled_from(["recall", "precision", "both"]))
def test_a_fitted_policy_meets_its_targets_on_val_or_is_refused(
    videos: tuple[np.ndarray, np.ndarray], recall: float, precision: float, which: str
) -> None:
    """By what `decide` does with each video, ties and probabilities of 0 and 1 included."""
    probabilities, labels = videos
    target = {"recall": recall, "precision": precision}
    targets = {"harmful": target if which == "both" else {which: target[which]}}
    try:
        found = fit_policy(probabilities, labels, CLASSES, "safe", targets, 0.2, "m")
    except UserError as error:
        assert error.code in ("recall-not-supported", "precision-not-supported")
        return
    decisions = [decide(found, row, "ok", "") for row in probabilities]
    if "recall" in targets["harmful"]:
        of_it = [decisions[row].decision for row in np.flatnonzero(labels == 1)]
        assert bound(len(of_it) - of_it.count("allow"), len(of_it)) >= recall
    if "precision" in targets["harmful"]:
        scores = calibrate(probabilities, found.temperature)[:, 1]
        blocked = labels[scores >= found.block["harmful"]] == 1
        assert bound(int(blocked.sum()), len(blocked)) >= precision


@settings(deadline=None, max_examples=60)
@given(val_videos(), st.floats(0.01, 0.99))
def test_any_fit_gives_a_valid_policy_that_reads_back(
    tmp_path_factory: pytest.TempPathFactory, videos: tuple[np.ndarray, np.ndarray], margin: float
) -> None:
    """One video, one class, no harmful video, all certain: also then."""
    found = fit_policy(*videos, CLASSES, "safe", {}, margin, "m")
    path = tmp_path_factory.mktemp("run") / "policy.json"
    save_policy(found, path)
    loaded = load_policy(path, CLASSES, "m")
    assert loaded == found and loaded.identity == found.identity == json.loads(path.read_text())["identity"]


@settings(deadline=None)
@given(val_videos(), st.integers(0, 2))
def test_more_probability_never_allows_more(videos: tuple[np.ndarray, np.ndarray], k: int) -> None:
    """Of two windows, the more harmful one decides."""
    rank = ("allow", "review", "block").index
    rows = videos[0]
    for row in rows[:10]:
        alone = [rank(decide(policy(), one, "ok", "").decision) for one in (row, rows[0])]
        assert rank(decide(policy(), np.stack([row, rows[0]]), "ok", "").decision) == max(alone)


# Report


def test_report_by_hand() -> None:
    labels = ["safe"] * 5 + ["harmful"] * 3 + ["adult"] * 2
    decisions = ["allow", "allow", "allow", "review", "block", "block", "allow", "review", "block", "block"]
    found = policy_report(decisions, labels, "safe")
    wilson = binomtest(1, 5).proportion_ci(0.95, method="wilson")
    one_in_five = {"count": 1, "of": 5, "rate": 0.2, "ci95": [wilson.low, wilson.high]}
    assert found == {
        "n": 10,
        "review_load": 0.2,
        "harmful_allowed": one_in_five,
        "safe_blocked": one_in_five,
        "confusion": {
            "adult": {"allow": 0, "review": 0, "block": 2},
            "harmful": {"allow": 1, "review": 1, "block": 1},
            "safe": {"allow": 3, "review": 1, "block": 1},
        },
    }
    json.dumps(found, allow_nan=False)


def test_report_at_its_edges() -> None:
    found = policy_report(["allow"], ["safe"], "safe")
    assert found["harmful_allowed"] == {"count": 0, "of": 0, "rate": None, "ci95": None}
    assert found["safe_blocked"]["ci95"] == [0.0, pytest.approx(0.7935, abs=1e-4)]  # z^2 / (1 + z^2), z = 1.96
    for decisions, labels in [([], []), (["allow"], []), (["maybe"], ["safe"])]:
        with pytest.raises(ValueError, match="expected one of"):
            policy_report(decisions, labels, "safe")
