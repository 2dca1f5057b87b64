"""The metrics of a cross-validation: those of every split, pooled over folds, and what resampling creators gives."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vidcls.metrics.bootstrap import bootstrap_intervals
from vidcls.metrics.classification import summarise
from vidcls.metrics.out_of_fold import OutOfFold, compare_out_of_fold, summarise_out_of_fold

CLASSES = ["adult", "harmful", "safe"]


def predicted(videos: int = 60, creators: int = 12, repeats: int = 2, seeds: int = 3, skill: float = 1.0) -> OutOfFold:
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(creators, size=videos), rng.integers(3, size=videos)
    logits = (
        rng.normal(size=(repeats, seeds, videos, 3)).round(1) + skill * np.eye(3)[labels]
    )  # rounded: there are ties
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return OutOfFold(labels, groups, probabilities)


def test_each_metric_is_the_mean_over_repeats_and_seeds_of_what_a_split_has() -> None:
    found = predicted()
    summary, runs = summarise_out_of_fold(found, CLASSES), found.probabilities.reshape(6, 60, 3)
    rows = np.arange(60)
    single = [summarise(run, found.labels, -np.log(run[rows, found.labels]), CLASSES) for run in runs]
    for name in ("accuracy", "auroc", "loss", "calibration_error"):
        values = np.array([metrics[name] for metrics in single])
        assert summary[name]["mean"] == pytest.approx(values.mean(), abs=1e-6), name
        assert (summary[name]["min"], summary[name]["max"]) == pytest.approx((values.min(), values.max()), abs=1e-6)
        by_repeat = values.reshape(2, 3)
        assert summary[name]["std_repeats"] == pytest.approx(by_repeat.mean(axis=1).std(ddof=1), abs=1e-6)
        assert summary[name]["std_seeds"] == pytest.approx(by_repeat.mean(axis=0).std(ddof=1), abs=1e-6)
    share = np.mean([(run.argmax(axis=1) == 1).mean() for run in runs])
    assert summary["predicted_share/harmful"]["mean"] == pytest.approx(share, abs=1e-6)
    assert summary["true_share/harmful"]["mean"] == pytest.approx((found.labels == 1).mean(), abs=1e-6)
    assert sum(summary[f"predicted_share/{name}"]["mean"] for name in CLASSES) == pytest.approx(1, abs=1e-5)


def test_a_weight_counts_a_video_so_many_times() -> None:
    """As in the resamples: the area under the ROC curve of a video given twice is that of two videos, ties included."""
    found = predicted(repeats=1, seeds=1)
    times = np.random.default_rng(1).integers(0, 3, size=60)
    measured = found.metrics(times[None].astype(float), CLASSES)
    rows = np.repeat(np.arange(60), times)
    labels, probabilities = found.labels[rows], found.probabilities[0, 0, rows]
    areas = [roc_auc_score(labels == k, probabilities[:, k]) for k in range(3)]
    assert measured["auroc"][0, 0, 0] == pytest.approx(np.mean(areas))
    losses = -np.log(probabilities[np.arange(len(rows)), labels])
    expected = summarise(probabilities, labels, losses, CLASSES)
    for name in ("accuracy", "loss", "calibration_error"):
        assert measured[name][0, 0, 0] == pytest.approx(expected[name], abs=1e-6), name


def test_intervals_of_one_run_are_those_of_evaluate() -> None:
    found = predicted(repeats=1, seeds=1)
    losses = -np.log(found.probabilities[0, 0, np.arange(60), found.labels])
    once = bootstrap_intervals(found.probabilities[0, 0], found.labels, losses, found.groups, CLASSES, unit="creators")
    summary = summarise_out_of_fold(found, CLASSES)
    assert summary["accuracy"]["ci95"] == pytest.approx(once["accuracy"])
    assert summary["loss"]["ci95"] == pytest.approx(once["loss"])
    assert summary["accuracy"]["std_repeats"] is None and summary["accuracy"]["std_seeds"] is None


@pytest.mark.parametrize("sharpness", [1.6, 3.0])
def test_intervals_of_the_calibration_error_cover_it(sharpness: float) -> None:
    """It is larger in few videos, and larger still in their resamples, whose percentiles miss it."""
    rng = np.random.default_rng(0)

    def overconfident(videos: int) -> OutOfFold:
        labels = rng.integers(2, size=videos)
        logits = sharpness * 1.5 * (rng.normal(size=videos) + 1.5 * (labels - 0.5))
        second = 1 / (1 + np.exp(-logits))
        return OutOfFold(labels, np.arange(videos), np.stack([1 - second, second], axis=1)[None, None])

    true = overconfident(200_000).metrics(np.ones((1, 200_000)), ["no", "yes"])["calibration_error"].item()
    drawn = [summarise_out_of_fold(overconfident(78), ["no", "yes"])["calibration_error"]["ci95"] for _ in range(80)]
    assert sum(low <= true <= high for low, high in drawn) >= 0.85 * 80
    assert all(low >= 0 for low, _ in drawn)


def test_what_is_undefined_is_none() -> None:
    one_class = OutOfFold(np.zeros(4, int), np.zeros(4, int), np.full((1, 1, 4, 3), 1 / 3))
    summary = summarise_out_of_fold(one_class, CLASSES)
    assert summary["auroc"]["mean"] is None and summary["accuracy"] == summary["accuracy"] | {"mean": 1, "ci95": None}


def test_an_area_of_zero_is_a_number() -> None:
    """Of a network that is always wrong; and a resample of few videos may have one."""
    labels = np.array([0, 1, 0, 1])
    found = OutOfFold(labels, np.arange(4), np.eye(2)[1 - labels][None, None])
    summary = summarise_out_of_fold(found, ["no", "yes"])
    assert summary["auroc"]["mean"] == 0 and summary["auroc"]["ci95"] == [0, 0]


def test_a_class_that_is_predicted_too_often_shows_in_its_share() -> None:
    rng = np.random.default_rng(0)
    labels, groups = np.arange(200) % 2, np.arange(200) // 4
    shifted = np.clip(rng.normal(0.7, 0.1, size=200), 0.01, 0.99)
    found = OutOfFold(labels, groups, np.stack([1 - shifted, shifted], axis=1)[None, None])
    summary = summarise_out_of_fold(found, ["no", "yes"])
    low, high = summary["share_difference/yes"]["ci95"]
    assert 0.3 < low < summary["share_difference/yes"]["mean"] < high


def test_two_are_compared_on_the_same_resamples() -> None:
    good, bad = predicted(skill=2), predicted(skill=0)
    differences = compare_out_of_fold(bad, good, CLASSES)
    expected = [summarise_out_of_fold(found, CLASSES)["accuracy"]["mean"] for found in (bad, good)]
    assert differences["accuracy"]["mean"] == pytest.approx(expected[1] - expected[0], abs=1e-5)
    assert differences["accuracy"]["ci95"][0] > 0 > differences["loss"]["ci95"][1]
    assert compare_out_of_fold(good, good, CLASSES)["accuracy"]["ci95"] == [0, 0]
    with pytest.raises(ValueError):
        compare_out_of_fold(good, predicted(videos=59), CLASSES)
