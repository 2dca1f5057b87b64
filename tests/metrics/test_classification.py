"""summarise: a table worked out by hand, torchmetrics on random cases, and the edges."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers.predictions import splits
from hypothesis import given, settings
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from vidcls.metrics.calibration import reliability
from vidcls.metrics.classification import summarise


def one_hot(predicted: list[int], k: int) -> np.ndarray:
    return np.eye(k)[predicted]


def measured(
    probabilities: Any, labels: list[int], classes: list[str], losses: list[float] | None = None
) -> dict[str, Any]:
    per_video = np.ones(len(labels)) if losses is None else np.array(losses)
    return summarise(np.array(probabilities), np.array(labels), per_video, classes)


def test_a_table_worked_out_by_hand() -> None:
    # truth      0    0    0    1    1    2
    # predicted  0    0    1    1    2    2
    probabilities = [
        [0.8, 0.1, 0.1],
        [0.6, 0.3, 0.1],
        [0.3, 0.5, 0.2],
        [0.1, 0.7, 0.2],
        [0.2, 0.2, 0.6],
        [0.1, 0.0, 0.9],
    ]
    got = measured(probabilities, [0, 0, 0, 1, 1, 2], ["safe", "harmful", "adult"], [0.1, 0.2, 0.3, 0.4, 0.5, 0.9])
    assert got["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert got["n"] == 6
    assert got["accuracy"] == 4 / 6
    assert got["loss"] == pytest.approx(0.4)
    assert got["per_class"] == {
        "safe": {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3},
        "harmful": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        "adult": {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1},
    }
    assert got["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    # safe: 0.8 0.6 0.3 against 0.1 0.2 0.1, every pair right: 1. harmful: 0.7 0.2 against 0.1 0.3 0.5 0.0, 4 + 2 of 8
    # pairs right: 0.75. adult: 0.9 against all lower: 1.
    assert got["auroc"] == pytest.approx((1 + 0.75 + 1) / 3, abs=1e-6)
    # Fifteenths: 0.5 (7th) wrong; 0.6 and 0.6 (edge of the 9th, one right); 0.7, 0.8, 0.9 right, alone in their bins.
    assert got["calibration_error"] == pytest.approx((0.5 + abs(1.2 - 1) + 0.3 + 0.2 + 0.1) / 6, abs=1e-6)
    assert got["calibration_error"] == reliability(np.array(probabilities), np.array([0, 0, 0, 1, 1, 2])).error


def test_wilson_interval_against_the_formula() -> None:
    low, high = measured(one_hot([0] * 8 + [1] * 2, 2), [0] * 10, ["a", "b"])["accuracy_ci95"]
    p, n, z = 0.8, 10, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(splits())
def test_equals_torchmetrics_and_is_strict_json_that_hangs_on_no_order(split: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = split
    k = probabilities.shape[1]
    classes = [f"class {i}" for i in range(k)]
    with np.errstate(divide="ignore"):
        losses = -np.log(probabilities[np.arange(len(labels)), labels])
    got = summarise(probabilities, labels, losses, classes)
    assert json.loads(json.dumps(got, allow_nan=False)) == got

    predicted, truth = torch.from_numpy(probabilities.argmax(axis=1)), torch.from_numpy(labels)
    assert got["accuracy"] == pytest.approx(float(multiclass_accuracy(predicted, truth, k, average="micro")), abs=1e-6)
    per_class = multiclass_f1_score(predicted, truth, k, average=None)
    assert [row["f1"] for row in got["per_class"].values()] == pytest.approx(per_class.tolist(), abs=1e-6)
    assert got["accuracy_ci95"][0] <= got["accuracy"] <= got["accuracy_ci95"][1]

    shuffled = np.random.default_rng(0).permutation(len(labels))
    again = summarise(probabilities[shuffled], labels[shuffled], losses[shuffled], classes)
    assert again.pop("calibration_error") == pytest.approx(got.pop("calibration_error"), abs=2e-6)
    assert again == got


def test_a_class_absent_from_the_split_counts_0_in_macro_f1_and_not_at_all_in_auroc() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchmetrics warns of classes without videos; here that is no news
        got = measured([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]], [0, 1], ["safe", "harmful", "adult"])
    assert got["per_class"]["adult"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert got["macro_f1"] == pytest.approx(2 / 3)
    assert got["auroc"] == 1.0


def test_one_class_present_leaves_auroc_undefined() -> None:
    got = measured([[0.7, 0.3], [0.4, 0.6]], [0, 0], ["safe", "harmful"])
    assert got["auroc"] is None
    assert got["per_class"]["harmful"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_support_is_an_integer_where_no_video_is_right() -> None:
    rows = measured([[0.7, 0.3]], [1], ["safe", "harmful"])["per_class"].values()
    assert [(row["support"], type(row["support"])) for row in rows] == [(0, int), (1, int)]


def test_a_single_video() -> None:
    got = measured([[0.25, 0.75]], [1], ["safe", "harmful"], [0.5])
    assert (got["n"], got["accuracy"], got["loss"], got["auroc"]) == (1, 1.0, 0.5, None)
    assert got["calibration_error"] == 0.25
    assert got["accuracy_ci95"] == pytest.approx([0.2065, 1.0], abs=1e-4)  # one video says next to nothing


def test_a_tie_goes_to_the_first_class() -> None:
    assert measured([[0.4, 0.4, 0.2]] * 3, [0, 1, 2], ["a", "b", "c"])["confusion"] == [[1, 0, 0]] * 3
    assert measured([[0.4, 0.4, 0.2]] * 2, [1, 1], ["a", "b", "c"])["calibration_error"] == pytest.approx(0.4)


def test_calibration_counts_certainty_in_the_last_bin() -> None:
    # All four in the bin that ends at 1: mean confidence 0.975, accuracy 0.75. With 1.0 in a bin of its own it would be
    # (|1 - 0.5| + |0.95 - 1|) / 2 = 0.275.
    got = measured([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.95, 0.05]], [0, 1, 0, 0], ["a", "b"])
    assert got["calibration_error"] == pytest.approx(0.975 - 0.75, abs=1e-6)


def test_single_precision_that_sums_to_a_little_over_1_is_not_taken_for_logits() -> None:
    rows = np.array([[1.0000001, 0.0], [0.1, 0.9]], dtype=np.float32)
    got = summarise(rows, np.array([0, 1]), np.zeros(2, dtype=np.float32), ["a", "b"])
    assert got["calibration_error"] == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_null(loss: float) -> None:
    assert measured([[0.7, 0.3]] * 2, [0, 1], ["a", "b"], [1.0, loss])["loss"] is None


@pytest.mark.parametrize(
    ("probabilities", "labels", "losses", "classes", "message"),
    [
        (np.zeros((0, 2)), [], [], ["a", "b"], "at least one video; got none"),
        (np.ones((1, 1)), [0], [0.0], ["a"], "two or more different classes"),
        (np.full((1, 2), 0.5), [0], [0.0], ["a", "a"], "two or more different classes"),
        (np.full((2, 2), 0.5), [0, 1], [0.0, 0.0], ["a", "b", "c"], r"shape \(2, 3\).*got \(2, 2\)"),
        (np.full((1, 2), 0.5), [2], [0.0], ["a", "b"], "labels from 0 to 1; got 2 to 2"),
        (np.full((1, 2), 0.5), [-1], [0.0], ["a", "b"], "labels from 0 to 1; got -1"),
        (np.array([[math.nan, 1.0], [0.5, 0.5]]), [0, 0], [0.0, 0.0], ["a", "b"], "finite probabilities; 1 rows"),
        (np.array([[2.5, -1.5]]), [0], [0.0], ["a", "b"], "rows of probabilities that sum to 1"),
        (np.array([[0.5, 0.9]]), [0], [0.0], ["a", "b"], "sums from 1.4 to 1.4"),
    ],
)
def test_what_makes_no_sense_is_refused(
    probabilities: np.ndarray, labels: list[int], losses: list[float], classes: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(probabilities, np.array(labels, dtype=int), np.array(losses, dtype=float), classes)


def test_lengths_that_differ_are_refused() -> None:
    # TypeError: where the annotations are checked (as in these tests), they see it first.
    with pytest.raises((ValueError, TypeError), match=r"losses"):
        summarise(np.full((2, 2), 0.5), np.array([0, 1]), np.zeros(3), ["a", "b"])
