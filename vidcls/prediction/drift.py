"""Compares new videos with those of training, for evaluate.py and predict.py; in numbers and in words."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from vidcls.data.decoding.result import USABLE
from vidcls.data.manifest import usable_rows
from vidcls.data.sources import creator_of
from vidcls.data.splits import group_numbers
from vidcls.files import write_json
from vidcls.metrics.comparison import compare_shares, energy_test, estimate_accuracy
from vidcls.metrics.predictions import Predictions
from vidcls.prediction.journal import Journal
from vidcls.prediction.run import BaseRun

ALPHA = 0.01  # of each of several tests
MIN_VIDEOS = 20  # fewer are not compared
MAX_VIDEOS = 2000  # of more, a random choice is compared


def known_predictions(run: BaseRun) -> tuple[pd.DataFrame, Predictions, str] | None:
    """The rows, predictions and their name, of held-out videos of a run: out-of-fold, else val; None without."""
    known, what = run.val_predictions, "the predictions of val"
    if run.oof_predictions is not None:
        known, what = run.oof_predictions, "the out-of-fold predictions of training"
    rows = pd.concat([usable_rows(run.manifest, split) for split in run.held_out_splits], ignore_index=True)
    if known is None or [run.classes[k] for k in known.labels] != list(rows["label"]):
        return None
    return rows, known, what


def compare_with_training(
    run: BaseRun,
    rows: pd.DataFrame,
    probabilities: Float[np.ndarray, "N K"],
    vectors: Float[np.ndarray, "N P"],
    labels: Int[np.ndarray, " N"] | None = None,
) -> dict[str, Any] | None:
    """Compares shares of classes, confidence and clip vectors with `known_predictions`, and estimates the accuracy.

    JSON-ready; None without `known_predictions`. ``rows`` have path, creator and sha256. ``features`` is None without
    clip vectors.
    """
    found = known_predictions(run)
    if found is None or len(rows) == 0:
        return None
    known_rows, known, what = found
    groups, known_groups = group_numbers(rows), group_numbers(known_rows)
    shares = compare_shares(probabilities.argmax(axis=1), groups, known.predicted, known_groups, run.classes)
    for k, name in enumerate(run.classes):
        shares[name]["reference_true"] = float((known.labels == k).mean())
        shares[name]["true"] = None if labels is None else float((labels == k).mean())
    some, known_some = (np.random.default_rng(0).permutation(len(of))[:MAX_VIDEOS] for of in (groups, known_groups))
    confidence, known_confidence = probabilities.max(axis=1), known.probabilities.max(axis=1)
    one, other = confidence[some, None], known_confidence[known_some, None]
    _, p = energy_test(one, groups[some], other, known_groups[known_some])
    accuracy, interval = estimate_accuracy(
        probabilities[some], groups[some], known.probabilities, known.labels, known_groups
    )
    features = None
    if run.reference is not None and vectors.shape[1]:
        number = dict(zip(known_rows["sha256"], known_groups, strict=True))
        of_reference = np.array([number.get(sha256, -1) for sha256 in run.reference.sha256s])
        distance, chance = energy_test(vectors[some], groups[some], run.reference.vectors, of_reference)
        features = {"distance": distance, "p": chance}
    return {
        "reference": what,
        "videos": len(rows),
        "per_class": shares,
        "confidence": {"mean": float(confidence.mean()), "reference": float(known_confidence.mean()), "p": p},
        "features": features,
        "estimated_accuracy": {"value": accuracy, "ci95": interval},
    }


def drift_notes(name: str, found: dict[str, Any] | None) -> Iterator[str]:
    """A sentence or two about each significant difference of the videos ``name`` in `compare_with_training`."""
    if found is None:
        return
    reference, classes = found["reference"], found["per_class"]
    differing = {label: one for label, one in classes.items() if one["differs"]}
    shown = list(differing)[:1] if len(classes) == 2 else list(differing)  # of two, one share is the other's rest
    for label in shown:
        one = differing[label]
        low, high = one["ci95"]
        true = "" if one["true"] is None else f"{one['true']:.0%} of {name} and "
        yield (
            f"Note: {one['share']:.0%} of {name} are predicted as {label}, against {one['reference']:.0%} of "
            f"{reference}, a significant difference (95 % interval {low:+.2f} to {high:+.2f}). The true share of "
            f"{label} is {true}{one['reference_true']:.0%} of those. If the true shares are similar, the threshold has "
            "shifted: choose it on videos like these."
        )
    confidence, features = found["confidence"], found["features"]
    if confidence["p"] <= ALPHA:
        yield (
            f"Note: the network's mean confidence differs between {name} and {reference}: {confidence['mean']:.2f} "
            f"against {confidence['reference']:.2f} (p-value {confidence['p']:.3f})."
        )
    if features is None:
        yield f"The run has no clip vectors, so the features of {name} are not compared."
    elif features["p"] <= ALPHA:
        yield (
            f"Note: {name} look unlike the videos of {reference} to the network (energy distance of clip vectors "
            f"{features['distance']:.3g}, p-value {features['p']:.3f}): other cameras, encodings or content. What is "
            "measured on those may not hold here."
        )


def accuracy_note(found: dict[str, Any]) -> str:
    value, (low, high) = found["estimated_accuracy"]["value"], found["estimated_accuracy"]["ci95"]
    return (
        f"Estimated accuracy on {found['videos']} videos (short, new to the run), without their labels: {value:.2f} "
        f"({low:.2f} to {high:.2f}), if probabilities are calibrated here as for {found['reference']}. On different "
        "videos they need not be: label some at random to find out."
    )


def stack_vectors(run: BaseRun, vectors: Sequence[Sequence[float]]) -> Float[np.ndarray, "N P"]:
    """The clip vectors of N videos of a journal; P is 0 unless all are in the components of the run's reference."""
    complete = run.reference is not None and {len(one) for one in vectors} == {len(run.reference.components)}
    return np.array(vectors if complete else np.empty((len(vectors), 0)), np.float64)


def predicted_drift(run: BaseRun, journal: Journal) -> list[str]:
    """Writes drift.json for the videos that predict.py has classified whole, and returns its notes.

    Copies count once. Long videos are left out, as their scores and vectors come from many windows, and those of train
    and val, which the network knows.
    """
    own = pd.concat([member.manifest for member in run.members])
    known = set(own.loc[own["split"].isin(["train", "val"]), "sha256"])
    whole = (
        (row, vector)
        for row, vector in journal.contents(single_window=True)
        if row["status"] in USABLE and row["sha256"] not in known
    )
    chosen = list(islice(whole, MAX_VIDEOS))
    if len(chosen) < MIN_VIDEOS:
        return []
    pattern = re.compile(str(run.config.data.creator_pattern))
    table = pd.DataFrame([row for row, _ in chosen])
    table["creator"] = [creator_of(PurePath(path).stem, pattern) for path in table["path"]]
    vectors = stack_vectors(run, [vector for _, vector in chosen])
    found = compare_with_training(run, table, table[run.classes].to_numpy(np.float64), vectors)
    if found is None:
        return ["The run has no predictions that new videos could be compared with."]
    write_json(journal.folder / "drift.json", found)
    return [*drift_notes("these videos", found), accuracy_note(found)]
