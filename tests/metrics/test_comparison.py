"""Changed videos are noticed, others seldom, also where those of one creator are alike; and accuracy without labels."""

from __future__ import annotations

import numpy as np
import pytest

from vidcls.metrics.calibration import calibrate
from vidcls.metrics.comparison import energy_test, estimate_accuracy


def drawn(rng: np.random.Generator, creators: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """One to eight videos of each creator, who are further apart than their videos."""
    groups = np.repeat(np.arange(creators), rng.integers(1, 9, size=creators))
    values = rng.normal(size=(creators, 3))[groups] + 0.3 * rng.normal(size=(len(groups), 3))
    return values + shift, groups


def test_the_distance_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    (new, groups), (known, known_groups) = drawn(rng, 6), drawn(rng, 9)

    def mean(one: np.ndarray, other: np.ndarray) -> float:
        return np.mean([np.linalg.norm(a - b) for a in one for b in other])

    expected = 2 * mean(new, known) - mean(new, new) - mean(known, known)
    assert energy_test(new, groups, known, known_groups)[0] == pytest.approx(expected)


def test_a_shift_is_noticed_and_chance_seldom_mistaken_for_one() -> None:
    rng = np.random.default_rng(1)
    same = [energy_test(*drawn(rng, 8), *drawn(rng, 25))[1] for _ in range(200)]
    assert np.mean(np.array(same) <= 0.05) < 0.1 and 0.4 < np.mean(same) < 0.6
    shifted = [energy_test(*drawn(rng, 8, 1.5), *drawn(rng, 25))[1] for _ in range(10)]
    assert max(shifted) <= 0.02


def test_one_group_of_new_videos_can_hardly_differ() -> None:
    """There are but as many permutations as groups."""
    rng = np.random.default_rng(2)
    assert energy_test(*drawn(rng, 1, 9.0), *drawn(rng, 10))[1] > 0.05


def test_the_accuracy_is_estimated_from_calibrated_confidence() -> None:
    rng = np.random.default_rng(3)
    true = rng.dirichlet(np.full(3, 0.5), size=4000)
    labels = np.array([rng.choice(3, p=row) for row in true])
    sure, groups = calibrate(true, 0.5), np.arange(4000)  # of a network that is too sure of itself
    new, known = slice(0, 2000), slice(2000, 4000)
    value, (low, high) = estimate_accuracy(sure[new], groups[new], sure[known], labels[known], groups[known])
    right = (sure[new].argmax(axis=1) == labels[new]).mean()
    assert low < value < high and value == pytest.approx(right, abs=0.03) and high - low < 0.08
    assert abs(sure[new].max(axis=1).mean() - right) > 0.05
