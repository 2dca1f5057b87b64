"""Shares that differ beyond chance are found, and chance is not mistaken for a difference."""

from __future__ import annotations

import numpy as np
import pytest

from vidcls.metrics.comparison import compare_shares

CLASSES = ["no", "yes"]


def drawn(rng: np.random.Generator, creators: int, share: float, alike: bool) -> tuple[np.ndarray, np.ndarray]:
    """Five videos of each creator, all alike or each on its own."""
    groups = np.repeat(np.arange(creators), 5)
    if alike:
        return np.repeat(rng.random(creators) < share, 5).astype(int), groups
    return (rng.random(len(groups)) < share).astype(int), groups


def test_a_shifted_threshold_shows() -> None:
    rng = np.random.default_rng(0)
    found = compare_shares(*drawn(rng, 20, 0.25, False), *drawn(rng, 40, 0.55, False), CLASSES)
    assert found["yes"]["differs"] and found["no"]["differs"]
    assert found["yes"]["difference"] == pytest.approx(found["yes"]["share"] - found["yes"]["reference"])
    low, high = found["yes"]["ci95"]
    assert low < found["yes"]["difference"] < high < 0
    assert found["no"]["ci95"] == pytest.approx([-high, -low])


@pytest.mark.parametrize("alike", [True, False])
def test_equal_shares_seldom_do(alike: bool) -> None:
    """Also where creators are few and their videos alike: of 60 pairs of equal shares, hardly more than one in 20."""
    rng = np.random.default_rng(1)
    pairs = [(drawn(rng, 12, 0.5, alike), drawn(rng, 30, 0.5, alike)) for _ in range(60)]
    wrong = sum(compare_shares(*one, *other, CLASSES)["yes"]["differs"] for one, other in pairs)
    assert wrong <= 6


@pytest.mark.parametrize("videos", [1, 2, 3, 5, 20])
def test_a_few_videos_that_are_predicted_alike_are_no_difference(videos: int) -> None:
    """Of three videos of two equal classes one in four draws is of one class: resamples of it do not differ."""
    rng = np.random.default_rng(2)
    known, each = (rng.random(200) < 0.5).astype(int), np.arange(200)
    drawn = (rng.random((100, videos)) < 0.5).astype(int)
    found = [compare_shares(one, each[:videos], known, each, CLASSES)["yes"] for one in drawn]
    assert sum(one["differs"] for one in found) <= 10
    assert all(one["ci95"][0] <= one["difference"] <= one["ci95"][1] for one in found)
