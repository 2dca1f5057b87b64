"""Confident learning, by a table that is computed by hand, and on labels that were flipped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcls.metrics.label_issues import find_label_issues


def test_a_table_by_hand() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.65, 0.3, 0.05], [0.3, 0.35, 0.35]])
    found = find_label_issues(p, np.array([0, 0, 1, 1, 2]))
    # Thresholds: (0.7 + 0.5) / 2 = 0.6, (0.7 + 0.3) / 2 = 0.5 and 0.35. The second video is confidently of no class.
    assert found.suspect.tolist() == [False, False, False, True, False]
    assert found.suggested.tolist() == [1, 1, 0, 0, 1]
    assert found.margins == pytest.approx([0.5, 0.1, 0.5, -0.35, 0.0])
    assert found.joint == pytest.approx(np.array([[0.4, 0, 0], [0.2, 0.2, 0], [0, 0, 0.2]]))
    assert found.ranked() == [3, 4, 1, 0, 2]


def test_flipped_labels_come_first() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=600)
    p = rng.dirichlet(np.ones(3), size=600) * 0.4 + 0.6 * np.eye(3)[truth]
    flipped = rng.random(600) < 0.1
    found = find_label_issues(p, np.where(flipped, (truth + 1) % 3, truth))
    assert flipped[found.ranked()[: flipped.sum()]].mean() == 1
    assert 1 - np.trace(found.joint) == pytest.approx(flipped.mean(), abs=0.02)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_equal_probabilities_contradict_no_label(classes: int) -> None:
    found = find_label_issues(np.full((50, classes), 1 / classes), np.arange(50) % classes)
    assert not found.suspect.any() and np.trace(found.joint) == pytest.approx(1)


@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 99))
def test_any_table_has_issues_that_fit_together(videos: int, classes: int, seed: int) -> None:
    """Also where a class has no videos."""
    rng = np.random.default_rng(seed)
    p, labels = rng.dirichlet(np.ones(classes), size=videos).round(2), rng.integers(classes, size=videos)
    found = find_label_issues(p, labels)
    assert sorted(found.ranked()) == list(range(videos)) and (found.suggested != labels).all()
    assert found.joint.sum() == pytest.approx(1) and found.joint.sum(axis=1) == pytest.approx(
        np.bincount(labels, minlength=classes) / videos
    )
    assert set(found.ranked()[: found.suspect.sum()]) == set(np.flatnonzero(found.suspect).tolist())
