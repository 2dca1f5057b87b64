"""Curves against tables worked out by hand, torchmetrics, and the figures that they must add up to."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers.predictions import splits
from hypothesis import given, settings
from torchmetrics.functional.classification import multiclass_calibration_error

from vidcls.metrics.calibration import reliability
from vidcls.metrics.classification import summarise
from vidcls.metrics.curves import precision_recall_curves, roc_curves


def binary(scores: list[float]) -> np.ndarray:
    return np.stack([1 - np.array(scores), np.array(scores)], axis=1)


# ---- reliability


def test_reliability_worked_out_by_hand() -> None:
    # Thirds: 0.6 wrong and 0.5 right in the middle one; 0.8 right, 0.9 wrong, 1.0 right in the last.
    found = reliability(binary([0.6, 0.5, 0.8, 0.9, 1.0]), np.array([0, 0, 1, 0, 1]), bins=3)
    np.testing.assert_allclose(found.confidence, [np.nan, 0.55, 0.9])
    np.testing.assert_allclose(found.accuracy, [np.nan, 0.5, 2 / 3])
    assert found.count.tolist() == [0, 2, 3]
    assert found.error == pytest.approx(2 / 5 * 0.05 + 3 / 5 * (0.9 - 2 / 3), abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(splits())
def test_the_gaps_of_the_bins_add_up_to_the_calibration_error(split: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = split
    found = reliability(probabilities, labels)
    assert len(found.count) == 15 and found.count.sum() == len(labels)
    held = found.count > 0
    assert np.isnan(found.accuracy[~held]).all() and np.isnan(found.confidence[~held]).all()
    gaps = np.abs(found.accuracy - found.confidence)[held]
    classes = [str(k) for k in range(probabilities.shape[1])]
    expected = summarise(probabilities, labels, np.zeros(len(labels)), classes)["calibration_error"]
    assert (gaps * found.count[held]).sum() / len(labels) == pytest.approx(expected, abs=1e-6)
    assert found.error == expected
    bins = np.arange(15)[held]
    assert (found.confidence[held] >= bins / 15 - 1e-6).all() and (found.confidence[held] <= (bins + 1) / 15).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_is_that_of_torchmetrics(seed: int) -> None:
    """Away from the bins' bounds, which torchmetrics rounds in another way."""
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet(np.full(3, 0.5), size=300).astype(np.float32), rng.integers(0, 3, size=300)
    theirs = multiclass_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels), 3, n_bins=15)
    assert reliability(probabilities, labels).error == pytest.approx(float(theirs), abs=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_bound_belongs_to_the_bin_above_it_and_certainty_to_the_last(dtype: type) -> None:
    scores = binary([9 / 15, 12 / 15, 1.0]).astype(dtype)
    assert np.flatnonzero(reliability(scores, np.array([1, 1, 1])).count).tolist() == [9, 12, 14]
    beyond = np.array([[1.0000001, 0.0]], dtype=np.float32)  # a softmax in single precision
    assert reliability(beyond, np.array([0])).count.tolist() == [0] * 14 + [1]


# ---- precision and recall, ROC


def test_precision_recall_worked_out_by_hand() -> None:
    # From the highest score down: right, wrong, right and wrong at once, right.
    scores, labels = binary([0.9, 0.8, 0.5, 0.5, 0.2]), np.array([1, 0, 1, 0, 1])
    curve = precision_recall_curves(scores, labels, ["safe", "harmful"])["harmful"]
    assert curve is not None
    np.testing.assert_allclose(curve.x, [0, 1 / 3, 1 / 3, 2 / 3, 1], atol=1e-7)
    np.testing.assert_allclose(curve.y, [1, 1, 1 / 2, 2 / 4, 3 / 5], atol=1e-7)
    assert curve.area == pytest.approx((1 + 1 / 2 + 3 / 5) / 3, abs=1e-6)
    assert (curve.support, curve.prevalence) == (3, 0.6)


def test_roc_worked_out_by_hand() -> None:
    scores, labels = binary([0.9, 0.8, 0.5, 0.5, 0.2]), np.array([1, 0, 1, 0, 1])
    curve = roc_curves(scores, labels, ["safe", "harmful"])["harmful"]
    assert curve is not None
    np.testing.assert_allclose(curve.x, [0, 0, 1 / 2, 1, 1], atol=1e-7)
    np.testing.assert_allclose(curve.y, [0, 1 / 3, 1 / 3, 2 / 3, 1], atol=1e-7)
    assert curve.area == pytest.approx(2.5 / 6, abs=1e-6)  # of 3 x 2 pairs 2 are right, and one is a tie


@settings(deadline=None, max_examples=60)
@given(splits())
def test_the_area_of_a_curve_is_what_is_drawn(split: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = split
    classes = [str(k) for k in range(probabilities.shape[1])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torchmetrics, where a class has no videos
        traced = precision_recall_curves(probabilities, labels, classes)
        roc = roc_curves(probabilities, labels, classes)
    assert list(traced) == list(roc) == classes
    for k, name in enumerate(classes):
        truth = labels == k
        curve = traced[name]
        assert (curve is None) == (not truth.any())
        if curve is not None:
            assert curve.area == pytest.approx(float((np.diff(curve.x) * curve.y[1:]).sum()), abs=2e-6)
            assert curve.y[-1] == pytest.approx(curve.prevalence)
        curve = roc[name]
        assert (curve is None) == (truth.all() or not truth.any())
        if curve is not None:
            assert curve.area == pytest.approx(float(np.trapezoid(curve.y, curve.x)), abs=2e-6)
            assert (curve.support, curve.prevalence) == (truth.sum(), truth.mean())


def test_the_areas_of_roc_curves_average_to_auroc() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(4), size=50), rng.integers(0, 3, size=50)  # no video of the fourth
    areas = [curve.area for curve in roc_curves(probabilities, labels, list("abcd")).values() if curve is not None]
    assert len(areas) == 3
    summary = summarise(probabilities, labels, np.zeros(50), list("abcd"))
    assert summary["auroc"] == pytest.approx(np.mean(areas), abs=2e-6)
