"""The results of evaluate.py in a run folder: metrics with intervals, curves, errors, and a policy."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from vidcls.data.decoding.result import USABLE
from vidcls.data.preparation import prepare_external, redecode_missing
from vidcls.data.splits import group_numbers
from vidcls.data.urls import absolute
from vidcls.data.videos import Videos
from vidcls.errors import UserError
from vidcls.evaluation.options import EvaluationPlan, PolicyOptions
from vidcls.files import csv_bytes, write_atomically, write_json
from vidcls.metrics.bootstrap import bootstrap_intervals
from vidcls.metrics.calibration import calibrate, reliability
from vidcls.metrics.curves import precision_recall_curves, roc_curves
from vidcls.metrics.predictions import Predictions
from vidcls.moderation.policy import (
    Policy,
    decide,
    fit_policy,
    load_policy,
    policy_notes,
    policy_report,
    save_policy,
)
from vidcls.plots.run_plots import confusion_figure, precision_recall_figure, reliability_figure, roc_figure
from vidcls.plots.style import Figure, save_figures
from vidcls.prediction.drift import compare_with_training, drift_notes, known_predictions
from vidcls.prediction.loading import load_run
from vidcls.prediction.predictor import Predictor
from vidcls.prediction.run import BaseRun
from vidcls.training.records import log_picture, worst_errors_figure, write_predictions


@dataclass(frozen=True)
class SplitResult:
    """The evaluation of one split."""

    folder: Path  # of its files
    predictions: Predictions
    metrics: dict[str, Any]  # what metrics.json holds
    notes: list[str]  # about the videos
    figures: dict[str, Figure]  # by name
    policy_report: dict[str, Any] | None


def prepare_evaluation(
    run: BaseRun, plan: EvaluationPlan, source: str | None, cache_dir: str | None, console: Console
) -> Videos:
    """The videos to evaluate on: the run's own, or those of ``source``.

    Raises:
        UserError: a video has changed or cannot be found, the source cannot be used, or a member of an ensemble was
            trained on some of the videos.
    """
    videos = run.videos(source, cache_dir)
    if source is None:
        redecode_missing(videos.options, run.manifest, plan.splits, console)
    else:
        trained_on = pd.concat([member.manifest for member in run.members], ignore_index=True)
        videos.load_manifest(prepare_external(videos.options, plan.split, trained_on, console).manifest)
    for split in plan.splits:
        if split != "train":
            _check_unseen(run, videos.rows(split), own=source is None)
    return videos


def _check_unseen(run: BaseRun, rows: pd.DataFrame, own: bool) -> None:
    """Raises `UserError` if a member of an ensemble was trained on these videos; its own val is out-of-fold if so."""
    for member in run.members if len(run.members) > 1 else ():
        splits = ("train",) if own else member.fitted_splits
        fitted = member.manifest[member.manifest["split"].isin(splits)]
        if seen := set(fitted["sha256"]) & set(rows["sha256"]) - {""}:
            raise UserError(
                "videos that no run of the ensemble was trained on",
                f"{len(seen)} that {member.folder} was trained on",
                "Remove them from the source, or leave that run out.",
                "ensemble-leak",
            )


def predict_held_out(
    run: BaseRun, predictor: Predictor, videos: Videos, split: str, source: str | None
) -> tuple[Predictions, Float[np.ndarray, "N P"]]:
    """Predictions and clip vectors of a split; out-of-fold for val if the network is fitted to it (refit=true)."""
    if source is None and split == "val" and run.refit:
        val = _out_of_fold(run)[1].last(len(videos.rows("val")))
        return val, np.empty((len(val.labels), 0))
    return predictor.classify_split(videos, split)


def _out_of_fold(run: BaseRun) -> tuple[pd.DataFrame, Predictions]:
    found = None if run.oof_predictions is None else known_predictions(run)
    if found is None:
        remedy = "Restore manifest.csv and config.yaml, or train again."
        raise UserError("the videos that the run was fitted to", "others in its manifest.csv", remedy, "other-videos")
    return found[:2]


def evaluate_run(folder: Path, accelerator: str | None, trust: Sequence[str], console: Console) -> dict[str, Any]:
    """The test metrics of the run in ``folder``, which is not changed.

    Raises:
        UserError: it is not the folder of a finished run, or the split is empty.
    """
    run = load_run(folder, trust)
    videos = run.videos()
    if videos.rows("test").empty:
        remedy = "Evaluate it with evaluate.py on new videos."
        raise UserError("videos in the run's test split", "none", remedy, "empty-split")
    redecode_missing(videos.options, run.manifest, ["test"], console)
    return run.make_predictor(accelerator).predict_split(videos, "test").summary(run.classes)


def choose_policy(
    run: BaseRun,
    options: PolicyOptions | None,
    videos: Videos,
    predictions: dict[str, Predictions],
    console: Console,
) -> Policy | None:
    """Fits and saves a policy for ``options``, to the run's out-of-fold predictions or else to those of val.

    Without ``options``, returns the run's policy, if any.

    Raises:
        UserError: there are too few videos for the targets, or the run's policy.json is damaged.
    """
    if options is None:
        path = run.policy_path
        return load_policy(path, run.classes, run.identity) if path.exists() else None
    # Without damaged videos, which are always for review, and without copies, which are not independent.
    if run.oof_predictions is None:
        rows, given = videos.rows("val"), predictions["val"]
    else:
        rows, given = _out_of_fold(run)
    fitted = ((rows["status"] == "ok") & ~rows.duplicated(["sha256", "label"])).to_numpy()
    policy = fit_policy(
        given.probabilities[fitted],
        given.labels[fitted],
        run.classes,
        safe_class=options.safe_class,
        targets=options.targets,
        review_margin=options.review_margin,
        model=run.identity,
        split="val" if run.oof_predictions is None else "training",
    )
    if lost := _lost_targets(run, policy.targets):
        note = f"Note: the policy that is replaced had {', '.join(lost)}; give these again to keep them."
        console.print(note, markup=False, soft_wrap=True)
    save_policy(policy, run.policy_path)
    return policy


def _lost_targets(run: BaseRun, targets: Mapping[str, Mapping[str, float]]) -> list[str]:
    try:
        before = load_policy(run.policy_path, run.classes, run.identity).targets
    except UserError:  # there is none, or none that could be used
        return []
    return [
        f"policy.target.{name}.{metric}={value:g}"
        for name, target in before.items()
        for metric, value in target.items()
        if metric not in targets.get(name, {})
    ]


def evaluate_split(
    run: BaseRun,
    videos: Videos,
    split: str,
    predictions: Predictions,
    vectors: Float[np.ndarray, "N P"],
    policy: Policy | None,
    folder: Path,
) -> SplitResult:
    """Computes all that is then written, plotted and printed about a split."""
    rows, classes, report, calibrated = videos.rows(split), run.classes, None, None
    groups = group_numbers(rows)
    unit = "creators" if (rows["creator"] != "").any() else "videos"
    given = predictions.probabilities, predictions.labels
    curves = precision_recall_curves(*given, classes)
    metrics = predictions.summary(classes)
    metrics["bootstrap_ci95"] = bootstrap_intervals(*given, predictions.losses, groups, classes, unit=unit)
    metrics["average_precision"] = {name: None if curve is None else curve.area for name, curve in curves.items()}
    compared = folder.name not in ("train", "val")
    drift = compare_with_training(run, rows, given[0], vectors, predictions.labels) if compared else None
    metrics["drift"] = drift
    about_policy = policy_notes(policy, run.policy_fitted_on) if policy else ()
    notes = [*absent_class_notes(split, metrics), *long_video_notes(run, split, rows), *drift_notes(split, drift)]
    metrics["notes"] = [*notes, *about_policy]
    if policy is not None:
        calibrated = reliability(calibrate(predictions.probabilities, policy.temperature), predictions.labels)
        metrics["calibration_error_calibrated"] = calibrated.error
        report = _policy_report(videos.manifest, split, predictions, policy)
    what = f"{metrics['n']} videos of {split}"
    figures = {
        "confusion": confusion_figure(metrics["confusion"], classes, f"Accuracy {metrics['accuracy']:.3f}, {what}"),
        "reliability": reliability_figure(reliability(*given), calibrated, f"Reliability, {what}"),
        "precision_recall": precision_recall_figure(curves, f"Precision-recall, {what}"),
        "roc": roc_figure(roc_curves(*given, classes), f"ROC, {what}"),
        "errors": worst_errors_figure(videos, split, predictions),
    }
    return SplitResult(folder, predictions, metrics, notes, figures, report)


def absent_class_notes(split: str, metrics: Mapping[str, Any]) -> Iterator[str]:
    """Notes about classes without videos."""
    if absent := [name for name, of_class in metrics["per_class"].items() if of_class["support"] == 0]:
        yield (
            f"Note: no video of {split} is of {', '.join(absent)}. In the macro F1 the F1 of such a class counts as 0, "
            "and the AUROC leaves it out."
        )


def long_video_notes(run: BaseRun, split: str, rows: pd.DataFrame) -> Iterator[str]:
    """A note about videos that predict.py would classify otherwise."""
    with warnings.catch_warnings(action="ignore"):
        limit = run.default_options().max_whole_seconds
    if limit is not None and (long := int((rows["seconds"].astype(float) > limit).sum())):
        yield (
            f"Note: {long} of {len(rows)} videos of {split} are longer than {limit:g} s. They are classified whole "
            "here, and in windows by predict.py, which may call and decide them otherwise."
        )


def result_folder(run: BaseRun, source: str | None, split: str) -> Path:
    """``evaluations/<split>`` of the run folder, or ``evaluations/<name>_<hash>_<split>`` for other data."""
    if source is None:
        return run.folder / "evaluations" / split
    path = Path(absolute(source))
    return run.folder / "evaluations" / f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:6]}_{split}"


def write_split(
    run: BaseRun, videos: Videos, split: str, result: SplitResult, policy: Policy | None, source: str | None
) -> None:
    """Writes the files of a split, and shows its plots in TensorBoard."""
    folder, rows = result.folder, videos.rows(split)
    write_predictions(folder / "predictions.csv", rows, result.predictions, run.classes)
    _write_errors(folder / "errors.csv", rows, result.predictions, run.classes)
    _log(run, folder.name, result.predictions, save_figures(result.figures, folder / "figures"))
    if policy is not None:
        write_json(folder / "policy_report.json", {"policy": policy.identity, split: result.policy_report})
    about: dict[str, Any] = {"model": run.identity, "source": None if source is None else absolute(source)}
    if source is None and split == "val" and run.refit:
        about["predictions"] = "out-of-fold"  # the network itself is fitted to these videos
    if len(run.members) > 1:
        about["members"] = [{"run": str(member.folder), "model": member.identity} for member in run.members]
    write_json(folder / "metrics.json", {split: result.metrics, "about": about})


def _write_errors(path: Path, rows: pd.DataFrame, predictions: Predictions, classes: list[str]) -> None:
    wrong = predictions.worst_errors()
    table = rows.loc[wrong, ["path", "label"]]
    table["predicted"] = [classes[k] for k in predictions.predicted[wrong]]
    table["confidence"] = [f"{p:.9g}" for p in predictions.probabilities[wrong].max(axis=1)]
    table["loss"] = [f"{loss:.9g}" for loss in predictions.losses[wrong]]
    table = pd.concat([table, rows.loc[wrong, ["creator", "status", "reason"]]], axis=1)
    write_atomically(path, csv_bytes(table))


def _policy_report(manifest: pd.DataFrame, split: str, predictions: Predictions, policy: Policy) -> dict[str, Any]:
    # Including the videos that could not be decoded.
    decisions, labels, probabilities = [], [], iter(predictions.probabilities)
    for row in manifest[(manifest["split"] == split) & (manifest["status"] != "dropped")].itertuples():
        usable = row.status in USABLE
        of_video = next(probabilities) if usable else np.full(len(policy.classes), np.nan)
        decisions.append(decide(policy, of_video, row.status, row.reason).decision)
        labels.append(row.label)
    return policy_report(decisions, labels, policy.safe_class)


def _log(run: BaseRun, name: str, predictions: Predictions, pictures: dict[str, Path]) -> None:
    with SummaryWriter(str(run.folder / "tensorboard"), filename_suffix=".evaluate") as writer:
        for kind, path in pictures.items():
            log_picture(writer, f"evaluate_{name}/{kind}", path, run.step)
        for k, label in enumerate(run.classes):
            scores = predictions.probabilities[:, k]
            writer.add_pr_curve(f"evaluate_{name}/{label}", predictions.labels == k, scores, run.step)
