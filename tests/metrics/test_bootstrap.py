"""Intervals against a plain loop, a table whose every resample is known, and what groups must do to their width."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from vidcls.metrics.bootstrap import bootstrap_intervals, resample_groups
from vidcls.metrics.classification import summarise


def one_hot(predicted: list[int] | np.ndarray, k: int) -> np.ndarray:
    return np.eye(k)[np.asarray(predicted)]


def intervals(
    predicted: Any, labels: Any, groups: Any, classes: str = "abc", losses: Any = None, **options: int
) -> dict[str, Any]:
    k, n = len(classes), len(labels)
    per_video = np.ones(n) if losses is None else np.array(losses, dtype=float)
    return bootstrap_intervals(
        one_hot(predicted, k), np.array(labels), per_video, np.array(groups), list(classes), unit="creators", **options
    )


def all_intervals(found: dict[str, Any]) -> list[list[float] | None]:
    rows = [row[name] for row in found["per_class"].values() for name in ("precision", "recall", "f1")]
    return [found["accuracy"], found["macro_f1"], found["loss"], *rows]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[float]]:
    """Predicted, labels (some classes absent), groups (any integers, of any size) and losses of 1 to 30 videos."""
    n = draw(st.integers(1, 30))
    columns = (st.integers(0, 2), st.integers(0, draw(st.integers(0, 2))), st.sampled_from([-7, 0, 3, 10**12]))
    predicted, labels, groups = (draw(st.lists(column, min_size=n, max_size=n)) for column in columns)
    return predicted, labels, groups, draw(st.lists(st.floats(0, 20), min_size=n, max_size=n))


def test_a_table_worked_out_by_hand() -> None:
    """Two groups: one all right (1 video, loss 1), one all wrong (3 videos, loss 2).

    A resample is the first twice (1 in 4), both (2 in 4) or the second twice (1 in 4): the accuracy is 1, 1/4 or 0.
    """
    found = intervals([0, 1, 1, 1], [0, 0, 0, 0], [5, 9, 9, 9], "ab", [1, 2, 2, 2])
    assert {name: found[name] for name in ("unit", "units", "resamples", "seed")} == {
        "unit": "creators",
        "units": 2,
        "resamples": 2000,
        "seed": 0,
    }
    assert found["accuracy"] == [0, 1]
    assert found["loss"] == [1, 2]  # 1, 7 / 4 or 2
    # a: F1 is 1, 2 / 5 or 0. b: never true, so 0 in all; its recall is undefined, its precision 0, called or not.
    assert found["macro_f1"] == [0, 0.5]
    assert found["per_class"]["a"] == {"precision": [0, 1], "recall": [0, 1], "f1": [0, 1]}
    assert found["per_class"]["b"] == {"precision": [0, 0], "recall": None, "f1": [0, 0]}


def test_percentiles_are_where_the_exact_distribution_puts_them() -> None:
    """Four groups of 1 video, two right: resampled accuracy is binomial(4, 1/2) / 4, tails of 1/16 each."""
    found = intervals([0, 0, 1, 1], [0, 0, 0, 0], range(4), "ab")
    assert found["accuracy"] == [0, 1]
    # Six groups: 1/64 below 1 right, 7/64 up to 1: the 2.5 % lie at 1 of 6.
    assert intervals([0, 0, 0, 1, 1, 1], [0] * 6, range(6), "ab", resamples=20_000)["accuracy"] == [1 / 6, 5 / 6]


@settings(deadline=None, max_examples=4)
@given(grouped(), st.integers(0, 5))
def test_equals_a_plain_loop_over_the_sameresample_groups(
    split: tuple[list[int], list[int], list[int], list[float]], seed: int
) -> None:
    predicted, labels, groups, losses = split
    found = intervals(predicted, labels, groups, losses=losses, resamples=101, seed=seed)
    members = [np.flatnonzero(np.array(groups) == number) for number in sorted(set(groups))]
    assert found["units"] == len(members)
    if len(members) < 2:
        assert all_intervals(found) == [None] * 12
        return
    values: dict[Any, list[float]] = {}

    @cache  # the same few groups are drawn again and again
    def metrics_of_draw(times: tuple[float, ...]) -> dict[str, Any]:
        rows = np.concatenate([np.repeat(member, int(count)) for member, count in zip(members, times, strict=True)])
        return summarise(
            one_hot(np.array(predicted)[rows], 3), np.array(labels)[rows], np.array(losses)[rows], list("abc")
        )

    for times in np.concatenate(list(resample_groups(len(members), 101, seed))):
        figures = metrics_of_draw(tuple(times.tolist()))
        for name in ("accuracy", "macro_f1", "loss"):
            values.setdefault(name, []).append(figures[name])
        for label, row in figures["per_class"].items():
            for name in ("precision", "recall", "f1"):
                if name != "recall" or row["support"]:
                    values.setdefault((label, name), []).append(row[name])
    for name in ("accuracy", "macro_f1", "loss"):
        assert found[name] == pytest.approx(np.percentile(values[name], [2.5, 97.5]).tolist(), abs=1e-9)
    for label, name in product("abc", ("precision", "recall", "f1")):
        expected = values.get((label, name), [])
        interval = np.percentile(expected, [2.5, 97.5]).tolist() if len(expected) >= 100 else None
        assert found["per_class"][label][name] == (interval and pytest.approx(interval, abs=1e-12))


@settings(deadline=None, max_examples=60)
@given(grouped())
def test_intervals_are_ordered_in_range_and_strict_json(
    split: tuple[list[int], list[int], list[int], list[float]],
) -> None:
    predicted, labels, groups, losses = split
    found = intervals(predicted, labels, groups, losses=losses, resamples=150)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    loss = found["loss"]
    if loss is not None:
        assert min(losses) - 1e-9 <= loss[0] <= loss[1] <= max(losses) + 1e-9
    for interval in all_intervals({**found, "loss": None}):
        assert interval is None or 0 <= interval[0] <= interval[1] <= 1


def test_videos_that_are_their_own_groups_come_close_to_wilson() -> None:
    right = np.random.default_rng(0).random(400) < 0.8
    found = intervals((~right).astype(int), [0] * 400, range(400), "ab")["accuracy"]
    wilson = binomtest(int(right.sum()), 400).proportion_ci(method="wilson")
    assert found == pytest.approx([wilson.low, wilson.high], abs=0.01)


def test_groups_that_stand_and_fall_together_widen_the_interval_as_if_each_were_one_video() -> None:
    right = np.random.default_rng(0).random(40) < 0.8
    videos, groups = np.repeat(right, 10), np.repeat(np.arange(40), 10)
    alone = intervals((~videos).astype(int), [0] * 400, range(400), "ab")["accuracy"]
    together = intervals((~videos).astype(int), [0] * 400, groups, "ab")["accuracy"]
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])  # the square root of 10 is 3.2
    assert together == intervals((~right).astype(int), [0] * 40, range(40), "ab")["accuracy"]


def test_a_rare_class_leaves_out_the_resamples_that_miss_it_of_its_recall_alone() -> None:
    # One video of b, always found, in one of 3 groups: (2/3)^3 = 30 % of the resamples miss it.
    found = intervals([1, 0, 0], [1, 0, 0], [0, 1, 2], "ab")
    assert found["per_class"]["b"] == {"precision": [0, 1], "recall": [1, 1], "f1": [0, 1]}
    assert intervals([1, 0, 0], [1, 0, 0], [0, 1, 2], "ab", resamples=120)["per_class"]["b"]["recall"] is None


def test_one_group_says_nothing_and_neither_does_a_loss_that_is_not_finite() -> None:
    assert all_intervals(intervals([0, 1, 2], [0, 1, 2], [4, 4, 4])) == [None] * 12
    found = intervals([0, 1, 2], [0, 1, 1], [0, 1, 2], losses=[1.0, np.inf, 1.0])
    assert found["loss"] is None and found["accuracy"] is not None


def test_the_seed_decides_and_numbers_and_order_of_the_groups_do_not() -> None:
    rng = np.random.default_rng(0)
    predicted, labels, groups = (rng.integers(0, 3, 60), rng.integers(0, 3, 60), np.sort(rng.integers(0, 12, 60)))
    found = intervals(predicted, labels, groups)
    assert found == intervals(predicted, labels, groups * 100 - 7)
    order = rng.permutation(60)
    assert found == intervals(predicted[order], labels[order], groups[order])
    assert found["accuracy"] != intervals(predicted, labels, groups, seed=1)["accuracy"]


def test_each_draw_takes_as_many_groups_as_there_are_evenly() -> None:
    draws = np.concatenate(list(resample_groups(3, 9000, seed=0)))
    assert draws.shape == (9000, 3)
    assert (draws.sum(axis=1) == 3).all()
    seen = Counter(tuple(row) for row in draws.astype(int).tolist())
    assert len(seen) == 10  # all of them
    assert seen[1, 1, 1] / 9000 == pytest.approx(6 / 27, abs=0.02)
    assert seen[3, 0, 0] / 9000 == pytest.approx(1 / 27, abs=0.01)


def test_many_groups_take_little_memory() -> None:
    n, k = 10_000, 20
    rng = np.random.default_rng(0)
    given = (rng.dirichlet(np.ones(k), n), rng.integers(0, k, n), np.ones(n), np.arange(n))
    tracemalloc.start()
    found = bootstrap_intervals(*given, [str(i) for i in range(k)], unit="videos", resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["units"] == n
    assert peak < 100e6


def test_arrays_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="labels from 0 to 1; got 2 to 2"):
        intervals([0, 1], [2, 2], [0, 1], "ab")
