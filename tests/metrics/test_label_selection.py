"""Random videos are a fair sample, uncertain ones the most uncertain, and diverse ones spread out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcls.metrics.label_selection import DIVERSE, RANDOM, UNCERTAIN, select_rows, uncertainty

NONE = np.empty((0, 0))


def test_the_random_part_takes_each_video_equally_often_whatever_it_is() -> None:
    rng = np.random.default_rng(0)
    p, vectors = rng.dirichlet(np.ones(3), size=20), rng.normal(size=(20, 2))
    drawn: Counter[int] = Counter()
    for seed in range(600):
        found = select_rows(p, vectors, vectors[:3], 10, random_share=0.4, diverse_share=0.3, seed=seed)
        assert [one.reason for one in found] == [RANDOM] * 4 + [UNCERTAIN] * 3 + [DIVERSE] * 3
        drawn.update(one.row for one in found if one.reason == RANDOM)
    assert min(drawn.values()) > 80 and max(drawn.values()) < 160 and len(drawn) == 20  # 120 is expected


def test_the_most_uncertain_come_first() -> None:
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]])
    found = select_rows(p, np.empty((4, 0)), NONE, 3, random_share=0, diverse_share=0.5, seed=0)
    assert [(one.row, one.reason) for one in found] == [(2, UNCERTAIN), (1, UNCERTAIN), (3, UNCERTAIN)]
    assert [one.score for one in found] == pytest.approx([1.0, 0.8, 0.4])


def test_diverse_videos_are_far_from_known_ones_and_from_each_other() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]])
    place = np.repeat(np.arange(4), 25)
    vectors, p = centres[place] + rng.normal(size=(100, 2)), np.full((100, 2), 0.5)
    for seed in range(20):
        found = select_rows(p, vectors, centres[:1], 3, random_share=0, diverse_share=1, seed=seed)
        assert sorted(place[[one.row for one in found]]) == [1, 2, 3]
    sure = np.where((place == 1)[:, None], [1.0, 0.0], p)  # what the network is sure of needs no label
    found = select_rows(sure, vectors, centres[:1], 3, random_share=0, diverse_share=1, seed=0)
    assert 1 not in place[[one.row for one in found]]


@given(st.integers(1, 30), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5), st.integers(0, 99))
def test_any_selection_has_its_count_and_no_video_twice(
    videos: int, count: int, random: float, diverse: float, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    p, vectors = rng.dirichlet(np.ones(2), size=videos), rng.integers(0, 2, size=(videos, size)).astype(float)
    shares = {"random_share": random, "diverse_share": diverse * (1 - random)}
    found = select_rows(p, vectors, vectors[:0], count, **shares, seed=seed)
    assert len({one.row for one in found}) == len(found) == min(count, videos)
    assert found == select_rows(p, vectors, vectors[:0], count, **shares, seed=seed)
    assert (uncertainty(p) >= 0).all()
