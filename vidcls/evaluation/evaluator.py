"""What evaluate.py leaves in a run folder: figures with intervals, curves, the worst errors, and a policy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from vidcls.data.preparation import prepare_external, redecode_missing
from vidcls.data.splits import group_videos
from vidcls.data.videos import Videos
from vidcls.evaluation.options import PolicyOptions
from vidcls.files import write_atomically
from vidcls.metrics.bootstrap import bootstrap_intervals
from vidcls.metrics.classification import calibration_error
from vidcls.metrics.curves import precision_recall_curves, reliability, roc_curves
from vidcls.metrics.predictions import Predictions
from vidcls.moderation.policy import (
    Policy,
    calibrate,
    decide,
    fit_policy,
    load_policy,
    policy_report,
    save_policy,
)
from vidcls.plots.run_plots import (
    confusion_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    save_figures,
)
from vidcls.prediction.predictor import LoadedRun
from vidcls.training.artifacts import log_picture, worst_figure, worst_rows, write_predictions


def prepare_data(cfg: DictConfig, trained: LoadedRun, splits: list[str], console: Console) -> Videos:
    """The videos to evaluate on: the run's own, as they were split, or those of ``data.source``."""
    datamodule = trained.videos(cfg.data.source, cfg.cache_dir)
    if cfg.data.source is None:
        datamodule.load_manifest(trained.manifest)
        redecode_missing(datamodule.options, trained.manifest, splits, console)
    else:
        prepared = prepare_external(datamodule.options, cfg.split, trained.manifest, console)
        datamodule.load_manifest(prepared.manifest)
    return datamodule


def choose_policy(
    options: PolicyOptions | None,
    trained: LoadedRun,
    datamodule: Videos,
    predictions: dict[str, Predictions],
) -> Policy | None:
    """A policy fitted on val and saved, or the one that the run has; None where there is none.

    Raises:
        UserError: the val videos cannot support the targets.
    """
    if options is None:
        path = trained.policy_path
        return load_policy(path, trained.classes, trained.identity) if path.exists() else None
    # A video that is damaged goes to a person whatever the network says of it: thresholds are for the others.
    whole = (datamodule.rows("val")["status"] == "ok").to_numpy()
    policy = fit_policy(
        predictions["val"].probabilities[whole],
        predictions["val"].labels[whole],
        trained.classes,
        harmless=options.safe_class,
        targets=options.targets,
        doubt=options.review_margin,
        model=trained.identity,
    )
    save_policy(policy, trained.policy_path)
    return policy


def write_evaluation(
    cfg: DictConfig,
    trained: LoadedRun,
    datamodule: Videos,
    predictions: dict[str, Predictions],
    policy: Policy | None,
    console: Console,
) -> None:
    """Writes the results of each predicted split under ``evaluations/`` of the run folder, and prints them."""
    figures: dict[str, dict[str, Any]] = {}
    reports: dict[str, dict[str, Any]] = {}
    for split, found in predictions.items():
        folder = _folder(trained, cfg.data.source, split)
        figures[split] = _split_figures(datamodule.rows(split), found, trained.classes, policy)
        drawn = _draw(datamodule, split, found, trained.classes, figures[split], policy)
        write_predictions(folder / "predictions.csv", datamodule.rows(split), found, trained.classes)
        _write_errors(folder / "errors.csv", datamodule.rows(split), found, trained.classes)
        _log(trained, folder.name, found, save_figures(drawn, folder / "figures"))
        if policy is not None:
            reports[split] = _report(datamodule.manifest, split, found, policy)
            _write_json(folder / "policy_report.json", {"policy": policy.identity, split: reports[split]})
        source = None if cfg.data.source is None else str(Path(datamodule.options.source).resolve())
        about = {"model": trained.identity, "source": source}
        _write_json(folder / "metrics.json", {split: figures[split], "about": about})
    _print(trained, figures, reports, policy, console)
    for split in predictions:
        console.print(f"Results: {_folder(trained, cfg.data.source, split)}", soft_wrap=True)


def _folder(trained: LoadedRun, source: str | None, split: str) -> Path:
    """evaluations/test of the run folder, or evaluations/<name>_<where> for other data: one folder per source."""
    if source is None:
        return trained.folder / "evaluations" / split
    where = hashlib.sha256(str(Path(source).resolve()).encode()).hexdigest()[:6]
    return trained.folder / "evaluations" / f"{Path(source).resolve().stem}_{where}_{split}"


def _split_figures(
    rows: pd.DataFrame, predictions: Predictions, classes: list[str], policy: Policy | None
) -> dict[str, Any]:
    """The keys of a split in metrics.json, the same to the last digit as training's own, and more."""
    groups = np.array(group_videos(list(rows["creator"]), list(rows["sha256"])))
    unit = "creators" if (rows["creator"] != "").any() else "videos"
    given = (predictions.probabilities, predictions.labels)
    figures = predictions.summary(classes)
    figures["bootstrap_ci95"] = bootstrap_intervals(*given, predictions.losses, groups, classes, unit=unit)
    curves = precision_recall_curves(*given, classes)
    figures["average_precision"] = {name: None if curve is None else curve.area for name, curve in curves.items()}
    if policy is not None:
        calibrated = calibrate(predictions.probabilities, policy.temperature)
        figures["calibration_error_calibrated"] = calibration_error(calibrated, predictions.labels)
    return figures


def _draw(
    datamodule: Videos,
    split: str,
    predictions: Predictions,
    classes: list[str],
    figures: dict[str, Any],
    policy: Policy | None,
) -> dict[str, Figure]:
    given = (predictions.probabilities, predictions.labels)
    before, after = reliability(*given), None
    if policy is not None:
        after = reliability(calibrate(predictions.probabilities, policy.temperature), predictions.labels)
    of = f"{split}, {figures['n']} videos"
    accuracy = f"{split}: accuracy {figures['accuracy']:.3f} of {figures['n']} videos"
    precision_recall = precision_recall_curves(*given, classes)
    return {
        "confusion": confusion_figure(figures["confusion"], classes, accuracy),
        "reliability": reliability_figure(before, after, f"Reliability: {of}"),
        "precision_recall": precision_recall_figure(precision_recall, f"Precision-recall: {of}"),
        "roc": roc_figure(roc_curves(*given, classes), f"ROC: {of}"),
        "errors": worst_figure(datamodule, split, predictions),
    }


def _write_errors(path: Path, rows: pd.DataFrame, predictions: Predictions, classes: list[str]) -> None:
    """Every wrongly classified video, the most confident first."""
    wrong = worst_rows(predictions, len(rows))
    table = rows.loc[wrong, ["path", "label"]]
    table["predicted"] = [classes[k] for k in predictions.probabilities[wrong].argmax(axis=1)]
    table["confidence"] = [f"{p:.9g}" for p in predictions.probabilities[wrong].max(axis=1)]
    table["loss"] = [f"{loss:.9g}" for loss in predictions.losses[wrong]]
    table = pd.concat([table, rows.loc[wrong, ["creator", "status", "reason"]]], axis=1)
    write_atomically(path, table.to_csv(index=False).encode())


def _report(manifest: pd.DataFrame, split: str, predictions: Predictions, policy: Policy) -> dict[str, Any]:
    """What the policy does with a split, the videos that could not be decoded included."""
    decided, labels, judged = [], [], iter(predictions.probabilities)
    for row in manifest[manifest["split"] == split].itertuples():
        if row.status != "dropped":
            lost = row.status == "undecodable"
            probabilities = np.full(len(policy.classes), np.nan) if lost else next(judged)
            decided.append(decide(policy, probabilities, row.status, row.reason).decision)
            labels.append(row.label)
    return policy_report(decided, labels, policy.harmless)


def _log(trained: LoadedRun, name: str, predictions: Predictions, pictures: dict[str, Path]) -> None:
    with SummaryWriter(str(trained.folder / "tensorboard"), filename_suffix=".evaluate") as writer:
        for kind, path in pictures.items():
            log_picture(writer, f"evaluate_{name}/{kind}", path, trained.step)
        for k, label in enumerate(trained.classes):
            writer.add_pr_curve(
                f"evaluate_{name}/{label}", predictions.labels == k, predictions.probabilities[:, k], trained.step
            )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode())


def _print(
    trained: LoadedRun,
    figures: dict[str, dict[str, Any]],
    reports: dict[str, dict[str, Any]],
    policy: Policy | None,
    console: Console,
) -> None:
    columns = {split: _figure_cells(found) for split, found in figures.items()}
    console.print(_by_split(f"Figures of {trained.folder.name}", columns))
    if policy is None:
        console.print(
            "No policy: what to allow, review and block is not settled. Say which class needs no action, for example "
            f"policy.harmless={trained.classes[-1]}",
            soft_wrap=True,
        )
        return
    before, after = policy.calibration_error["before"], policy.calibration_error["after"]
    console.print(
        f"Policy {policy.identity}: temperature {policy.temperature:.3f} (ECE on val {before:.3f}, calibrated "
        f"{after:.3f}); harmless class {policy.harmless}",
        markup=False,
        soft_wrap=True,
    )
    thresholds = Table()
    for column in ("harmful class", "review from", "block from", "asked for"):
        thresholds.add_column(column)
    for name, review in policy.review.items():
        wish = ", ".join(f"{kind} {value:g}" for kind, value in policy.targets.get(name, {}).items()) or "-"
        thresholds.add_row(Text(name), f"{review:.3f}", f"{policy.block[name]:.3f}", wish)
    console.print(thresholds)
    for name, review in policy.review.items():
        if review > 0.5:
            console.print(
                f"Mind {name}: what scores from 0.5 to {review:.3f} is more likely {name} than not, and allowed. Ask "
                "for more recall to lower that.",
                markup=False,
                soft_wrap=True,
            )
    fitted = "val (fitted)" if len(reports) > 1 else "val"
    columns = {fitted if split == "val" else split: _outcome_cells(report) for split, report in reports.items()}
    console.print(_by_split("What it would do", columns))


def _by_split(title: str, columns: dict[str, dict[str, str]]) -> Table:
    """A column per split and a row per figure: of those there are many, and a terminal may be 80 wide."""
    table = Table("", title=title, title_justify="left")
    for split in columns:
        table.add_column(split, justify="right")
    for name in next(iter(columns.values())):
        table.add_row(name, *(cells[name] for cells in columns.values()))
    return table


def _figure_cells(found: dict[str, Any]) -> dict[str, str]:
    resampled = found["bootstrap_ci95"]
    return {
        "videos": str(found["n"]),
        "accuracy": _number(found["accuracy"]),
        "  95 %, Wilson": _interval(found["accuracy_ci95"]),
        "  95 %, resampled": f"{_interval(resampled['accuracy'])} ({resampled['unit']})",
        "macro F1": _number(found["macro_f1"]),
        "AUROC": _number(found["auroc"]),
        "calibration error": _number(found["calibration_error"]),
        "loss": _number(found["loss"]),
    }


def _outcome_cells(report: dict[str, Any]) -> dict[str, str]:
    cells = {"videos": str(report["n"]), "review load": f"{report['review_load']:.1%}"}
    for name in ("harmful_allowed", "harmless_blocked"):
        rate = report[name]
        cells[f"{name.replace('_', ' ')} (95 %)"] = f"{rate['count']} of {rate['of']} ({_interval(rate['ci95'])})"
    return cells


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: list[float] | None) -> str:
    if interval is None or interval[0] == interval[1]:  # the bootstrap of figures without a flaw has no width
        return "-"
    return f"{interval[0]:.2f} to {interval[1]:.2f}"
