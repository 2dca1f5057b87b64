"""The results of a cross-validation: all out-of-fold predictions in one table, and their metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from vidcls.cli import shell_command
from vidcls.data.manifest import read_manifest
from vidcls.data.splits import group_numbers
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
from vidcls.files import csv_bytes, write_atomically, write_json
from vidcls.metrics.calibration import calibrate, fit_temperature
from vidcls.metrics.out_of_fold import OutOfFold, compare_out_of_fold, summarise_out_of_fold
from vidcls.sweeps.fold_plan import RECORD, RESERVED, Plan, check_files, folds_path, job_folder
from vidcls.sweeps.jobs import read_json
from vidcls.training.label_report import write_label_issues

OUT_OF_FOLD = "out_of_fold.csv"
METRICS = {"accuracy": "accuracy", "auroc": "AUROC", "loss": "log loss", "calibration_error": "calibration error (ECE)"}


@dataclass(frozen=True)
class CrossValidation:
    """A cross-validation whose runs are all finished."""

    folder: Path
    plan: Plan
    record: dict[str, Any]  # what cross_validation.json holds
    overrides: list[str]  # of its command
    table: pd.DataFrame  # out_of_fold.csv: repeat, seed, fold, path, creator, label, predicted, a column per class
    videos: pd.DataFrame  # folds.csv: path, label, creator, sha256 and more; in the order of their paths

    @property
    def classes(self) -> list[str]:
        return list(self.record["classes"])

    @property
    def command(self) -> str:
        """The shell command that repeats it."""
        given = [text for text in self.overrides if text.partition("=")[0] not in RESERVED]
        return shell_command("python", "cross_validate.py", *given)

    @property
    def unit(self) -> str:
        """What intervals resample."""
        return "creators" if self.record["creators"] else "videos"

    @cached_property
    def predictions(self) -> OutOfFold:
        """The table as arrays; videos are in the order of their paths."""
        table, classes = self.table.sort_values(["repeat", "seed", "path"], kind="stable"), self.classes
        shape = (self.plan.repeats, len(self.plan.seeds), self.record["videos"], len(classes))
        return OutOfFold(
            self.videos["label"].map(classes.index).to_numpy(),
            group_numbers(self.videos),
            table[classes].to_numpy(np.float64).reshape(shape),
        )

    @cached_property
    def summary(self) -> dict[str, Any]:
        """See `vidcls.metrics.out_of_fold.summarise_out_of_fold`."""
        return summarise_out_of_fold(self.predictions, self.classes)


def read_cross_validation(folder: Path) -> CrossValidation:
    """Gathers the out-of-fold predictions of all runs.

    Raises:
        UserError: a run is missing, was trained on its fold, or did not predict exactly the videos of its fold.
    """
    record = read_json(folder / RECORD, *Plan.__dataclass_fields__, "classes", "videos", "creators")
    plan = Plan(**{name: record[name] for name in Plan.__dataclass_fields__})
    overrides = read_json(folder / "sweep.json", "overrides")["overrides"]
    check_files(folder, record)
    folds = pd.read_csv(folds_path(folder), dtype=str, keep_default_na=False)
    unfinished = [job for job in plan.jobs if not (job_folder(folder, *job) / "metrics.json").is_file()]
    if unfinished:
        name = job_folder(folder, *unfinished[0]).name
        raise UserError(
            "a cross-validation whose runs are all finished",
            f"{len(unfinished)} that are not, such as {name}",
            f"See its error.txt, if there is one; the same command and output={folder} continues.",
            "unfinished-cross-validation",
        )
    parts = [_read_fold(folder, folds, record["classes"], *job) for job in plan.jobs]
    videos = folds.sort_values("path", kind="stable", ignore_index=True)
    return CrossValidation(folder, plan, record, overrides, pd.concat(parts, ignore_index=True), videos)


def _read_fold(
    folder: Path, folds: pd.DataFrame, classes: Sequence[str], repeat: int, fold: int, seed: int
) -> pd.DataFrame:
    job = job_folder(folder, repeat, fold, seed)
    path = job / "predictions_test.csv"
    held_out = folds[folds[f"repeat{repeat}"] == str(fold)]
    manifest = read_manifest(job / "manifest.csv")
    tested, others = manifest[manifest["split"] == "test"], manifest[manifest["split"] != "test"]
    used = set(tested[["path", "label", "sha256"]].itertuples(index=False, name=None))
    expected = set(held_out[["file", "label", "sha256"]].itertuples(index=False, name=None))
    texts = dict.fromkeys(("path", "label", "predicted"), str)
    found = pd.read_csv(path, keep_default_na=False, dtype=texts) if path.is_file() else None
    fits = found is not None and list(zip(found["path"], found["label"], strict=True)) == list(
        zip(held_out["file"], held_out["label"], strict=True)
    )
    if found is None or not fits or used != expected or set(others["sha256"]) & set(held_out["sha256"]):
        raise UserError(
            f"a run that was tested on exactly the {len(held_out)} videos of fold {fold} in repeat {repeat}",
            f"others, or none, in {job}",
            f"Remove that folder, and repeat the same command with output={folder}.",
            "damaged-fold",
        )
    table = held_out[["path", "creator", "label"]].reset_index(drop=True)
    for index, (name, value) in enumerate({"repeat": repeat, "seed": seed, "fold": fold}.items()):
        table.insert(index, name, value)
    return pd.concat([table, found[["predicted", *classes]]], axis=1)


def write_results(folder: Path, store: FrameStore) -> None:
    """Writes out_of_fold.csv, metrics.json, cross_validation.md and the suspect labels, and prints the table.

    Raises:
        UserError: see `read_cross_validation`.
    """
    found = read_cross_validation(folder)
    table = found.table.sort_values(["repeat", "seed", "path"], kind="stable")
    write_atomically(folder / OUT_OF_FOLD, csv_bytes(table))
    content = {"cross_validation": found.record, "unit": found.unit, "out_of_fold": found.summary}
    write_json(folder / "metrics.json", content)
    write_atomically(folder / "cross_validation.md", results_text(found).encode())
    mean = found.predictions.probabilities.mean(axis=(0, 1))  # [N, K]
    suspect = write_label_issues(folder, found.videos, mean, found.classes, store)
    console = Console()
    print_results([found], console)
    console.print(f"{suspect} of {len(found.videos)} labels are suspect: see label_issues.html")
    console.print(
        f"Results: {folder}\n  {OUT_OF_FOLD}  metrics.json  cross_validation.md", markup=False, soft_wrap=True
    )


# ---- tables


def average(results: Sequence[CrossValidation]) -> CrossValidation:
    """What ensembles predict out of fold: the mean of the probabilities of one run of each, trained on the same videos.

    Raises:
        UserError: they are not of the same videos, classes, folds and seeds.
    """
    first, runs = results[0], ["sha256", "repeat", "seed", "fold", "path", "label"]
    tables = []
    for found in results:
        hashes = found.table["path"].map(found.videos.set_index("path")["sha256"])
        tables.append(found.table.assign(sha256=hashes).sort_values(runs, ignore_index=True))
        if found.classes != first.classes or not tables[-1][runs].equals(tables[0][runs]):
            expected = "cross-validations of the same videos, classes, folds and seeds, for average=true"
            remedy = "Leave average=true out, or repeat one of them with the options of the other."
            raise UserError(expected, f"others in {found.folder} than in {first.folder}", remedy, "average")
    mean = np.mean([table[first.classes].to_numpy(np.float64) for table in tables], axis=0)
    table = tables[0].assign(predicted=np.array(first.classes)[mean.argmax(axis=1)])
    table[first.classes] = mean
    return replace(first, table=table)


def calibrated(found: CrossValidation) -> CrossValidation:
    """The same predictions, those of each fold calibrated by the temperature that suits the others of its repeat best.

    It estimates what the temperature of a policy.json does for networks of these options.
    """
    table, classes = found.table.reset_index(drop=True), found.classes
    for _, runs in table.groupby(["repeat", "seed"]):
        for _, held_out in runs.groupby("fold"):
            others = runs.drop(held_out.index)
            labels = others["label"].map(classes.index).to_numpy()
            temperature = fit_temperature(others[classes].to_numpy(np.float64), labels)
            table.loc[held_out.index, classes] = calibrate(held_out[classes].to_numpy(np.float64), temperature)
    return replace(found, table=table)


def results_table(results: Mapping[str, CrossValidation]) -> pd.DataFrame:
    """A row per metric, a column per cross-validation, by its title: mean [interval] and spread."""
    columns = {}
    for title, found in results.items():
        cells = {metric: _cell(found.summary[name]) for name, metric in METRICS.items()}
        for name in found.classes:
            true = found.summary[f"true_share/{name}"]["mean"]
            cells[f"share predicted {name}"] = f"{_cell(found.summary[f'predicted_share/{name}'])}, true {true:.3f}"
        columns[title] = cells
    return pd.DataFrame(columns).fillna("-").rename_axis("out of fold").reset_index()


def _cell(metric: dict[str, Any]) -> str:
    if metric["mean"] is None:
        return "-"
    text = f"{metric['mean']:.3f}"
    if metric["ci95"] is not None and metric["ci95"][0] < metric["ci95"][1]:  # without any error it has no width
        text += f" [{metric['ci95'][0]:.3f}, {metric['ci95'][1]:.3f}]"
    spreads = {"repeats": metric["std_repeats"], "seeds": metric["std_seeds"]}
    shown = ", ".join(f"{name} ± {value:.3f}" for name, value in spreads.items() if value is not None)
    return f"{text} ({shown})" if shown else text


def describe(found: CrossValidation) -> str:
    plan, record = found.plan, found.record
    locked = f" {record['locked_videos']} videos of other splits were not touched." if record["locked_videos"] else ""
    return (
        f"{record['videos']} videos of {record['creators']} creators ({' and '.join(plan.splits)} of "
        f"{record['source']}), {plan.folds} {plan.protocol} folds x {plan.repeats} repeats x "
        f"{len(plan.seeds)} seeds.{locked}"
    )


def notes(found: CrossValidation) -> list[str]:
    """How to read the numbers, and warnings."""
    lines = [
        f"[95 % interval, resampling {found.unit}]; ± is the standard deviation over repeats (other folds) and over "
        "seeds. Metrics pool the folds of a repeat."
    ]
    if found.plan.protocol == "random":
        lines.append("Random folds: networks are tested on creators that they were trained on. New ones get less.")
    for name in found.classes:
        difference = found.summary[f"share_difference/{name}"]
        if difference["ci95"] is not None and difference["ci95"][0] > 0:
            more = f"{difference['mean']:.3f} [{difference['ci95'][0]:.3f}, {difference['ci95'][1]:.3f}]"
            lines.append(f"{name} is predicted too often, by {more} of all videos: its threshold is shifted.")
    return lines


def comparisons(results: Mapping[str, CrossValidation]) -> list[str]:
    """The difference of each further cross-validation to the first, if both are of the same videos."""
    lines = []
    (first_title, first), *others = results.items()
    for title, found in others:
        name = f"{title.partition(' (')[0]} - {first_title.partition(' (')[0]}"
        try:
            if found.classes != first.classes or list(found.videos["sha256"]) != list(first.videos["sha256"]):
                raise ValueError
            differences = compare_out_of_fold(first.predictions, found.predictions, found.classes)
        except ValueError:
            lines.append(f"{name}: of other videos, so their difference is not measured.")
            continue
        texts = []
        for metric, title in METRICS.items():
            one = differences[metric]
            if one["mean"] is not None and one["ci95"] is not None:
                texts.append(f"{title} {one['mean']:+.3f} [{one['ci95'][0]:+.3f}, {one['ci95'][1]:+.3f}]")
        lines.append(f"{name}: {', '.join(texts)}")
    return lines


def results_text(found: CrossValidation) -> str:
    """The text of cross_validation.md."""
    table = results_table({found.plan.protocol: found}).to_markdown(index=False, disable_numparse=True)
    command, lines = f"```sh\n{found.command}\n```", "\n".join(f"- {line}" for line in notes(found))
    return "\n\n".join(["# Cross-validation", command, describe(found), table, lines]) + "\n"


def print_results(results: Sequence[CrossValidation], console: Console, averaged: bool = False) -> None:
    """Prints the table with notes, and compares the others, and their `average` if asked for, with the first."""
    titled = {found.plan.protocol: found for found in results}
    lines = [describe(found) for found in results]
    if len(results) > 1:
        titled = {f"{chr(ord('A') + i)} ({found.plan.protocol})": found for i, found in enumerate(results)}
        lines = [f"{title}: {found.folder}: {describe(found)}" for title, found in titled.items()]
    if averaged:
        titled["average"] = average(results)
        titled["average, calibrated"] = calibrated(titled["average"])
    lines += ["", results_table(titled).to_string(index=False), ""]
    lines += dict.fromkeys(line for found in results for line in notes(found))
    lines += comparisons(titled)
    console.print(Text("\n".join(lines)), soft_wrap=True)
