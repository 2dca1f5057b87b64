"""New videos beside those of training: what differs is said, by evaluate.py and by predict.py."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import call
from helpers.runs import evaluate, predict, refused, results
from helpers.videos import write_video

from vidcls.errors import UserError
from vidcls.metrics.predictions import Predictions
from vidcls.prediction.drift import MIN_VIDEOS, accuracy_note, compare_with_training, drift_notes
from vidcls.prediction.loading import load_run
from vidcls.prediction.run import LoadedRun
from vidcls.training.reference import fit_reference, read_reference, reference_path, write_reference


def predictions(labels: np.ndarray, predicted: np.ndarray) -> Predictions:
    return Predictions(labels, np.eye(3, dtype=np.float32)[predicted], np.zeros(len(labels), np.float32))


@pytest.fixture
def run(finished: Path) -> LoadedRun:
    """With 60 known videos, all predicted correctly and nowhere alike."""
    run, labels = load_run(finished), np.arange(60) % 3
    known = run.manifest.assign(split="train").iloc[[0] * 60].reset_index(drop=True)
    known = known.assign(path=[f"{n}.mp4" for n in range(60)], creator="", label=[run.classes[k] for k in labels])
    known["sha256"] = [f"{n:064x}" for n in range(60)]
    vectors = np.random.default_rng(0).normal(size=(60, run.model.output.in_features))
    reference = fit_reference(vectors, list(known["sha256"]))
    return replace(run, manifest=known, oof_predictions=predictions(labels, labels), reference=reference)


def test_a_class_that_is_predicted_too_seldom_is_named(run: LoadedRun) -> None:
    rows, labels, none = run.manifest, np.arange(60) % 3, np.empty((60, 0))
    (unknown_looks,) = drift_notes("test", compare_with_training(run, rows, np.eye(3)[labels], none, labels))
    assert "no clip vectors" in unknown_looks
    seldom = np.eye(3)[np.where(labels == 1, 2, labels)]
    found = compare_with_training(run, rows, seldom, none, labels)
    assert found is not None and found["per_class"]["harmful"]["true"] == pytest.approx(1 / 3)
    notes = list(drift_notes("test", found))
    assert ["predicted as harmful" in note for note in notes] == [True, False, False] and "0% of test" in notes[0]
    unknown = replace(run, oof_predictions=None, val_predictions=None)
    assert compare_with_training(unknown, rows, np.eye(3)[labels], none) is None


def test_other_confidence_and_other_looks_are_said(run: LoadedRun) -> None:
    assert run.reference is not None
    labels, vectors = np.arange(60) % 3, run.reference.vectors
    found = compare_with_training(run, run.manifest, np.eye(3)[labels], vectors)
    assert found is not None and found["features"]["p"] > 0.5 and list(drift_notes("these videos", found)) == []
    unsure = 0.5 * np.eye(3)[labels] + 1 / 6
    found = compare_with_training(run, run.manifest, unsure, vectors + 2)
    assert found is not None and json.loads(json.dumps(found, allow_nan=False)) == found
    confidence, looks = drift_notes("these videos", found)
    assert "0.67 against 1.00" in confidence and "look unlike" in looks
    assert found["estimated_accuracy"]["value"] == pytest.approx(2 / 3) and "0.67" in accuracy_note(found)


def test_the_reference_is_of_held_out_videos_and_predictions_are_projected(finished: Path) -> None:
    run = load_run(finished)
    videos, reference = run.videos(), run.reference
    assert reference is not None and sorted(reference.sha256s) == sorted(videos.rows("val")["sha256"])
    found, vectors = run.predictor.classify_split(videos, "val")
    order = [reference.sha256s.index(sha256) for sha256 in videos.rows("val")["sha256"]]
    np.testing.assert_allclose(vectors, reference.vectors[order], atol=1e-4)
    without = replace(run, reference=None).make_predictor()
    same, none = without.classify_split(videos, "val")
    assert (same.probabilities == found.probabilities).all() and none.shape == (len(vectors), 0)


def test_a_reference_of_other_weights_is_none(finished: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    path, run = reference_path(copied), load_run(copied)
    path.write_bytes(path.read_bytes().replace(run.identity.encode(), b"0" * 12))
    assert load_run(copied).reference is None
    path.unlink()
    assert load_run(copied).reference is None


@pytest.mark.parametrize("fault", ["truncated", "other size", "NaN"])
def test_a_reference_that_does_not_fit_is_refused(finished: Path, tmp_path: Path, fault: str) -> None:
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    run = load_run(copied)
    assert run.reference is not None
    path, size = reference_path(copied), len(run.reference.mean)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        vectors = np.full((3, size + (fault == "other size")), np.nan if fault == "NaN" else 1.0, np.float32)
        write_reference(copied, replace(run.reference, mean=vectors[0], components=vectors, vectors=vectors[:, :3]))
    with pytest.raises(UserError) as error:
        read_reference(copied, run.identity, run.model)
    assert error.value.code == "bad-reference"
    refused(call("evaluate.py", f"run={copied}", "split=val"), "bad-reference")


def test_evaluation_compares_with_val(finished: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    evaluate(copied, "split=test")
    drift = results(copied / "evaluations" / "test")["test"]["drift"]
    assert drift["reference"] == "the predictions of val" and 0 < drift["features"]["p"] <= 1
    assert set(drift["per_class"]) == {"adult", "harmful", "safe"}


def test_prediction_says_how_videos_compare(finished: Path, tmp_path: Path) -> None:
    for number in range(MIN_VIDEOS):
        write_video(
            tmp_path / "new" / f"c{number}_1.mp4",
            np.random.default_rng(number).integers(0, 256, (10, 32, 32, 3), np.uint8),
        )
    shutil.copy(tmp_path / "new" / "c0_1.mp4", tmp_path / "new" / "copy_1.mp4")
    printed = predict(finished, tmp_path / "new", tmp_path / "out").stdout
    found = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert found["videos"] == MIN_VIDEOS and found["features"] is not None
    assert f"Estimated accuracy on {MIN_VIDEOS} videos" in printed
    run = load_run(finished)
    shutil.copytree(tmp_path / "out", tmp_path / "more")
    more = predict(finished, run.config.data.source, tmp_path / "more").stdout  # train and val are not new
    assert f"Estimated accuracy on {MIN_VIDEOS + (run.manifest['split'] == 'test').sum()} videos" in more
    again = predict(finished, tmp_path / "new", tmp_path / "out").stdout  # from the journal alone
    assert json.loads((tmp_path / "out" / "drift.json").read_text()) == found and "Estimated accuracy" in again
    few = predict(finished, tmp_path / "new" / "c0_1.mp4", tmp_path / "few")
    assert not (tmp_path / "few" / "drift.json").exists() and "Estimated accuracy" not in few.stdout
