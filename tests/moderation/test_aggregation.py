from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcls.moderation.aggregation import AGGREGATIONS, video_class, video_score

THREE = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]])


@pytest.mark.parametrize(
    ("aggregation", "top_k", "expected"),
    [
        ("max", 3, [0.9, 0.8, 0.5]),
        ("mean", 3, [0.475, 0.3375, 0.1875]),
        ("top_k_mean", 1, [0.9, 0.8, 0.5]),
        ("top_k_mean", 2, [0.8, 0.55, 0.3]),
        ("top_k_mean", 99, [0.475, 0.3375, 0.1875]),
    ],
)
def test_video_score(aggregation: str, top_k: int, expected: list[float]) -> None:
    assert video_score(THREE, aggregation, top_k) == pytest.approx(expected)


@pytest.mark.parametrize(("aggregation", "expected"), [("max", 1), ("top_k_mean", 1), ("mean", 0)])
def test_a_short_harmful_passage_makes_the_class_of_all_but_the_mean(aggregation: str, expected: int) -> None:
    windows = np.tile([0.98, 0.01, 0.01], (200, 1))
    windows[70:73] = [0.05, 0.9, 0.05]
    assert video_class(windows, safe_class=0, aggregation=aggregation, top_k=3) == expected
    assert int(video_score(windows, aggregation, 3).argmax()) == 0  # the highest score does not say it


def test_the_harmful_class_with_the_highest_score_is_taken_and_a_lost_one_is_not() -> None:
    assert video_class(THREE, safe_class=0, aggregation="max") == 1  # 2 holds too, in its own window, with 0.5
    assert video_class(THREE, safe_class=1, aggregation="max") == 0
    # Class 1 is never the most probable one of a window, high as it is.
    assert video_class(np.array([[0.55, 0.45], [0.9, 0.1]]), safe_class=0, aggregation="max") == 0


ROWS = st.lists(st.lists(st.floats(0.0625, 1.0, width=32), min_size=3, max_size=3), min_size=1, max_size=12)


@settings(deadline=None)
@given(
    ROWS, st.sampled_from(AGGREGATIONS), st.integers(1, 5), st.integers(0, 2), st.sampled_from(["float32", "float64"])
)
def test_one_window_is_itself_bit_for_bit(
    rows: list, aggregation: str, top_k: int, safe_class: int, dtype: str
) -> None:
    window = np.array(rows[:1], dtype) / np.sum(rows[0], dtype=dtype)
    score = video_score(window, aggregation, top_k)
    assert score.dtype == window.dtype
    assert score.tobytes() == window[0].tobytes()
    if len(set(window[0])) == 3:
        assert video_class(window, safe_class, aggregation, top_k) == window[0].argmax()


@settings(deadline=None)
@given(ROWS, st.integers(1, 12))
def test_scores_are_ordered_and_do_not_depend_on_the_order_of_windows(rows: list, top_k: int) -> None:
    windows = np.array(rows) / np.sum(rows, axis=1, keepdims=True)
    largest, mean, best = (video_score(windows, aggregation, top_k) for aggregation in ("max", "mean", "top_k_mean"))
    assert (mean <= best + 1e-12).all() and (best <= largest + 1e-12).all()
    assert mean.sum() == pytest.approx(1)
    for aggregation in AGGREGATIONS:
        assert video_score(windows[::-1], aggregation, top_k) == pytest.approx(video_score(windows, aggregation, top_k))
