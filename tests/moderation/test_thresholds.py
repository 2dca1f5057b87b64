"""Temperatures and thresholds, against tables by hand and the bounds that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.policies import bound, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax
from scipy.stats import norm

from vidcls.errors import UserError
from vidcls.metrics.calibration import calibrate, fit_temperature
from vidcls.moderation.thresholds import block_threshold, review_threshold


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("k", [2, 4])
def test_a_known_miscalibration_is_found(temperature: float, k: int) -> None:
    honest, labels = draw(4000, 2.0, seed=1, k=k)
    distorted = softmax(np.log(honest) * temperature, axis=1)
    found = fit_temperature(distorted, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    np.testing.assert_allclose(calibrate(distorted, temperature), honest, atol=1e-9)
    # The distortion is a scaling, so what is found scales with it exactly.
    assert found == pytest.approx(temperature * fit_temperature(honest, labels), rel=1e-5)


def test_temperature_by_hand() -> None:
    # Two classes, the first at odds of 81 : 1 and right in 9 of 10, odds 9 : 1: T = log 81 / log 9 = 2.
    rows = np.tile([81 / 82, 1 / 82], (10, 1))
    assert fit_temperature(rows, np.array([0] * 9 + [1])) == pytest.approx(2.0, abs=1e-6)


def test_temperature_is_one_where_labels_cannot_tell() -> None:
    assert fit_temperature(np.array([[0.6, 0.4], [0.3, 0.7]]), np.array([0, 1])) == 1.0  # all right: no minimum
    assert fit_temperature(np.full((4, 2), 0.5), np.array([0, 1, 0, 0])) == 1.0  # ties: nothing to scale


def test_temperature_stays_within_its_bounds() -> None:
    assert 19.9 < fit_temperature(np.array([[0.9, 0.1]] * 3), np.array([1, 1, 0])) <= 20.0  # worse than a coin


def test_certain_and_wrong_is_finite() -> None:
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    temperature = fit_temperature(rows, np.array([0, 1, 1]))
    assert 1.0 < temperature <= 20.0
    assert np.isfinite(calibrate(rows, temperature)).all()
    with pytest.raises(ValueError, match="finite probabilities"):
        fit_temperature(np.array([[np.nan, np.nan]]), np.array([0]))


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=17), elements=st.floats(0, 1, width=32)),
    st.floats(0.05, 20),
)
def test_calibrate_gives_a_row_the_same_bits_alone_as_among_others(rows: np.ndarray, temperature: float) -> None:
    together = calibrate(rows, temperature)
    np.testing.assert_allclose(together.sum(axis=1), 1.0)
    np.testing.assert_array_equal(together, calibrate(np.asfortranarray(rows), temperature))
    for row, among in zip(rows, together, strict=True):
        np.testing.assert_array_equal(calibrate(row, temperature), among)


def test_calibrate_at_one_leaves_probabilities_alone() -> None:
    probabilities, _ = draw(50, 1.0, seed=0, k=3)
    np.testing.assert_allclose(calibrate(probabilities, 1.0), probabilities, atol=1e-12)


# Review threshold: recall


@pytest.mark.parametrize(("recall", "needed"), [(0.5, 5), (0.8, 14), (0.9, 29), (0.95, 59), (0.99, 299)])
def test_the_least_number_of_videos(recall: float, needed: int) -> None:
    scores = np.linspace(0.2, 0.9, needed)
    assert review_threshold(scores, np.ones(needed, bool), recall, name="harmful") == 0.2  # no miss is allowed
    with pytest.raises(UserError) as error:
        review_threshold(scores[1:], np.ones(needed - 1, bool), recall, name="harmful")
    assert error.value.code == "recall-not-supported" and f"at least {needed} val videos" in str(error.value)


# The least n for 0, 1, 2, 3 misses are 59, 93, 124, 153 in tables of Wilks' tolerance limits (95 % / 95 %).
@pytest.mark.parametrize(("n", "misses"), [(59, 0), (92, 0), (93, 1), (123, 1), (124, 2), (152, 2), (153, 3)])
def test_misses_that_095_allows(n: int, misses: int) -> None:
    scores = np.arange(n + 50) / 1000  # the 50 best are not of the class, and do not matter
    positives = np.arange(n + 50) < n
    assert review_threshold(scores, positives, 0.95, name="a") == misses / 1000


def test_too_few_for_recall_says_what_would_do() -> None:
    scores, positives = np.linspace(0, 1, 30), np.arange(30) < 20
    with pytest.raises(UserError) as error:
        review_threshold(scores, positives, 0.95, name="a")
    assert "policy.target.a.recall=0.86 or less" in str(error.value)
    review_threshold(scores, positives, 0.86, name="a")  # as the message says
    with pytest.raises(UserError) as error:
        review_threshold(scores, np.zeros(30, bool), 0.95, name="a")
    assert error.value.code == "recall-not-supported" and "or less" not in str(error.value)


scored = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(deadline=None, max_examples=40)
@given(scored, st.integers(1, 200), st.floats(0.02, 0.98), st.integers(2, 500))
def test_review_is_the_highest_threshold_whose_bound_holds(
    rng: np.random.Generator, n: int, recall: float, grid: int
) -> None:
    scores, positives = rng.integers(0, grid, n) / grid, rng.random(n) < 0.7
    of = int(positives.sum())

    def holds(threshold: float) -> bool:
        return of > 0 and bound(int((scores[positives] >= threshold).sum()), of) >= recall

    thresholds = [float(t) for t in np.unique(scores) if holds(t)]
    if thresholds:
        assert review_threshold(scores, positives, recall, name="a") == max(thresholds)
    else:
        with pytest.raises(UserError, match="not-supported"):
            review_threshold(scores, positives, recall, name="a")


@settings(deadline=None, max_examples=40)
@given(scored, st.integers(100, 300), st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_asking_for_more_moves_thresholds_one_way(rng: np.random.Generator, n: int, one: float, other: float) -> None:
    scores, positives = rng.random(n), np.ones(n, bool)
    less, more = sorted((one, other))
    of_less, of_more = (review_threshold(scores, positives, recall, name="a") for recall in (less, more))
    assert of_less >= of_more
    positives = rng.random(n) < scores
    positives[np.argsort(scores)[-50:]] = True
    of_less, of_more = (block_threshold(scores, positives, precision, name="a") for precision in (less, more))
    assert of_less <= of_more


@pytest.mark.parametrize(("n", "recall"), [(60, 0.95), (100, 0.9), (300, 0.95)])
def test_recall_is_kept_on_videos_to_come(n: int, recall: float) -> None:
    rng = np.random.default_rng(3)
    thresholds = [review_threshold(rng.normal(size=n), np.ones(n, bool), recall, name="a") for _ in range(1000)]
    kept = np.mean(norm.sf(thresholds) >= recall)  # the true recall of each
    assert kept >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 1000)
    assert kept <= 0.99  # and it is not bought by throwing the threshold to the floor


# Block threshold: precision


def test_block_by_hand() -> None:
    # From the top: 59 of the class, one other, 33 of the class, then others. 92 of 93 is the first bound to hold again.
    positives = np.array([True] * 59 + [False] + [True] * 33 + [False] * 7)
    scores = np.linspace(1, 0, 100)
    assert block_threshold(scores, positives, 0.95, name="a") == scores[92]
    assert block_threshold(scores[:92], positives[:92], 0.95, name="a") == scores[58]  # 91 of 92 is not enough
    shuffled = np.random.default_rng(0).permutation(100)
    assert block_threshold(scores[shuffled], positives[shuffled], 0.95, name="a") == scores[92]


def test_videos_that_tie_are_blocked_together() -> None:
    scores = np.array([0.9] * 59 + [0.8] * 59)
    first = np.array([True] * 118)
    assert block_threshold(scores, first, 0.95, name="a") == 0.8
    first[60:64] = False  # the tie as a whole falls short, though some of it would do in the order of the file
    assert block_threshold(scores, first, 0.95, name="a") == 0.9
    with pytest.raises(UserError, match="precision-not-supported"):
        block_threshold(np.full(70, 0.5), np.arange(70) < 60, 0.95, name="a")


@settings(deadline=None, max_examples=40)
@given(scored, st.integers(1, 150), st.floats(0.02, 0.98), st.integers(2, 300))
def test_block_is_the_lowest_threshold_whose_bound_holds(
    rng: np.random.Generator, n: int, precision: float, grid: int
) -> None:
    scores = rng.integers(0, grid, n) / grid
    positives = rng.random(n) < scores
    thresholds = [
        float(t)
        for t in np.unique(scores)
        if bound(int(positives[scores >= t].sum()), int((scores >= t).sum())) >= precision
    ]
    if thresholds:
        assert block_threshold(scores, positives, precision, name="a") == min(thresholds)
    else:
        with pytest.raises(UserError, match="not-supported"):
            block_threshold(scores, positives, precision, name="a")


def test_no_threshold_for_precision_says_what_would_do() -> None:
    scores, positives = np.linspace(1, 0, 40), np.arange(40) < 30
    with pytest.raises(UserError) as caught:
        block_threshold(scores, positives, 0.95, name="a")
    assert caught.value.code == "precision-not-supported" and "at least 59 val videos" in str(caught.value)
    assert "set policy.target.a.precision=0.904 or less" in str(caught.value)  # 0.05 ** (1 / 30) = 0.9049...
    assert block_threshold(scores, positives, 0.904, name="a") == scores[29]
    with pytest.raises(UserError) as caught:
        block_threshold(scores, np.zeros(40, bool), 0.95, name="a")
    assert "or less" not in str(caught.value)


@pytest.mark.parametrize(("n", "separation", "precision"), [(200, 2.0, 0.9), (1000, 2.0, 0.9)])
def test_precision_is_kept_about_as_often_as_documented(n: int, separation: float, precision: float) -> None:
    rng, failed, repetitions = np.random.default_rng(5), 0, 1000
    for _ in range(repetitions):
        positives = rng.random(n) < 0.4
        scores = rng.normal(size=n) + separation * positives
        try:
            threshold = block_threshold(scores, positives, precision, name="a")
        except UserError:
            continue
        hits, false = 0.4 * norm.sf(threshold - separation), 0.6 * norm.sf(threshold)
        failed += hits / (hits + false) < precision
    assert failed / repetitions <= 0.06 + 3 * math.sqrt(0.06 * 0.94 / repetitions)
