"""A sweep's folder as tables: its jobs, its ranked configurations (jobs that differ in the seed only), and effects."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_float_dtype, is_integer_dtype

from vidcls.cli import short_names, value_text
from vidcls.data.decoding.result import LOST
from vidcls.errors import UserError, check_choice
from vidcls.metrics import LOWER_IS_BETTER
from vidcls.sweeps.jobs import FORMAT, check_sweep, read_json

SEED = "seed"
METRICS = ("val_accuracy", "val_macro_f1", "val_loss")
FLOATS = ("objective", *METRICS, "val_accuracy_low", "val_accuracy_high", "clips_per_second", "fit_seconds")
INTEGERS = ("val_n", "best_epoch", "parameters", "peak_memory_bytes")  # NA if unknown


@dataclass(frozen=True)
class Sweep:
    """The current state of a sweep.

    ``jobs`` has a row per job, sorted by the values of its options: job (its folder's name), state (done, failed,
    unfinished), a column per option (numbers if all values are numbers, else text as on the command line),
    configuration (a number), `FLOATS`, `INTEGERS`, reason (of a failure), held_out (a hash of its val and test videos
    and of its classes; "" if unknown). NaN is unknown.
    """

    folder: Path
    overrides: list[str]  # of its command
    options: list[str]  # what was swept, the seed included
    objective: str  # a key of `LOWER_IS_BETTER`
    planned: int | None  # the number of jobs; None if a sampler decides
    jobs: pd.DataFrame
    job_overrides: dict[str, list[str]]
    histories: dict[str, pd.DataFrame]  # a row per epoch, for each job that has finished an epoch

    @property
    def lower_is_better(self) -> bool:
        return LOWER_IS_BETTER[self.objective]

    @property
    def metric(self) -> str:
        return f"val {self.objective.replace('_', ' ')}"

    @property
    def objective_name(self) -> str:
        return f"{self.metric} ({'lower' if self.lower_is_better else 'higher'} is better)"

    @property
    def settings(self) -> list[str]:
        """The options that make a configuration."""
        return [option for option in self.options if option != SEED]

    @property
    def names(self) -> dict[str, str]:
        """A short name of each option."""
        return dict(zip(self.options, short_names(self.options), strict=True))

    @property
    def done(self) -> pd.DataFrame:
        """The finished jobs, each once, even if a sampler has repeated it."""
        seed = [SEED] if SEED in self.options else []
        return self.jobs[self.jobs["state"] == "done"].drop_duplicates(["configuration", *seed])

    @property
    def continuous(self) -> list[str]:
        """The numeric options whose values hardly repeat, as when a sampler draws them."""
        found = []
        for option in self.options:
            values = self.jobs[option]
            many = max(3, len(values) / 2) if is_float_dtype(values) else 12 if is_integer_dtype(values) else math.inf
            found += [option] if values.nunique() > many else []
        return found

    def varying(self, options: Sequence[str]) -> list[str]:
        return [option for option in options if self.jobs[option].nunique() > 1]

    def count(self, state: str) -> int:
        return int((self.jobs["state"] == state).sum())

    @property
    def not_started(self) -> int | None:
        """The number of jobs that have not started; None if the total is unknown."""
        return None if self.planned is None else max(self.planned - len(self.jobs), 0)

    def check_writable(self) -> None:
        if not os.access(self.folder, os.W_OK):
            remedy = "Copy it to where you may write."
            raise UserError("a sweep folder that can be written", str(self.folder), remedy, "read-only-sweep")


# ---- reading


def read_sweep(folder: Path) -> Sweep:
    """Reads a sweep and all its jobs.

    Raises:
        UserError: it is no sweep, or one of its files is damaged.
    """
    check_sweep(folder, "sweep")
    record = read_json(folder / "sweep.json", "format", "overrides", "swept", "objective", "planned")
    if record["format"] != FORMAT:
        got = f"{record['format']} in {folder}"
        raise UserError(f"a sweep of format {FORMAT}", got, "Use the version that wrote it.", "sweep-format")
    objective = check_choice("objective", record["objective"], tuple(LOWER_IS_BETTER))
    options: list[str] = record["swept"]
    folders = sorted(path.parent for path in folder.glob("*/job.json"))
    records = {path.name: read_json(path / "job.json", "knobs", "overrides") for path in folders}
    histories = {path.name: _read_history(path / "history.csv") for path in folders}
    rows = [_read_job(path, objective, histories[path.name]) for path in folders]
    jobs = pd.DataFrame(rows, columns=["job", "state", *FLOATS, *INTEGERS, "reason", "held_out"])
    jobs = jobs.astype(dict.fromkeys(FLOATS, "float64") | dict.fromkeys(INTEGERS, "Int64"))
    for index, option in enumerate(options, 2):
        jobs.insert(index, option, _column([job["knobs"].get(option) for job in records.values()]))
    if options:
        jobs = jobs.sort_values(options, kind="stable", ignore_index=True)
    settings = [option for option in options if option != SEED]
    jobs["configuration"] = jobs.groupby(settings, sort=False).ngroup() if settings else 0
    return Sweep(
        folder,
        overrides=[str(text) for text in record["overrides"]],
        options=options,
        objective=objective,
        planned=record["planned"],
        jobs=jobs,
        job_overrides={name: [str(text) for text in job["overrides"]] for name, job in records.items()},
        histories={name: table for name, table in histories.items() if len(table)},
    )


def _column(values: Sequence[Any]) -> pd.Series:
    """Numbers if all values are; else text as on the command line, such as cnn_lstm, null, true or [32, 64]."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return pd.Series(values, dtype=None if values else "object")
    return pd.Series([value if isinstance(value, str) else json.dumps(value) for value in values])


def _read_job(folder: Path, objective: str, history: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {"job": folder.name, "state": "unfinished", "reason": "", "held_out": ""}
    if history["val/loss"].notna().any():
        # Of an unfinished job, if the val loss chooses.
        row["best_epoch"] = int(history.loc[history["val/loss"].idxmin(), "epoch"])
    if (folder / "metrics.json").is_file():
        metrics = read_json(folder / "metrics.json", "val", "timing")
        val, timing = metrics["val"], metrics["timing"]
        row["best_epoch"] = metrics.get("best_epoch", row.get("best_epoch"))
        row |= {"state": "done", "objective": val.get(objective), "parameters": metrics.get("parameters")}
        row |= {f"val_{name}": val.get(name) for name in ("accuracy", "macro_f1", "loss", "n")}
        row["val_accuracy_low"], row["val_accuracy_high"] = val["accuracy_ci95"]
        row["held_out"] = _held_out(folder / "manifest.csv")
        row |= {name: timing.get(name) for name in ("clips_per_second", "fit_seconds", "peak_memory_bytes")}
    elif (folder / "error.txt").is_file():
        lines = (folder / "error.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        row |= {"state": "failed", "reason": lines[-1].strip() if lines else "unknown"}
    return row


def _held_out(manifest: Path) -> str:
    if not manifest.is_file():
        return ""
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    held_out = rows[rows["split"].isin(["val", "test"]) & ~rows["status"].isin(LOST)]
    videos = sorted(held_out[["split", "label", "sha256"]].itertuples(index=False, name=None))
    return hashlib.sha256(json.dumps([videos, sorted(set(rows["label"]))]).encode()).hexdigest()[:12]


def _read_history(path: Path) -> pd.DataFrame:
    columns = ["epoch", "val/loss", "val/accuracy"]
    if not path.is_file() or not path.stat().st_size:
        return pd.DataFrame(columns=columns, dtype="float64")
    return pd.read_csv(path).reindex(columns=columns)


# ---- tables


def label(row: pd.Series, sweep: Sweep) -> str:
    """A configuration in short: its options that differ between jobs."""
    shown = sweep.varying(sweep.settings) or sweep.settings
    pairs = [f"{sweep.names[option]}={value_text(row[option])}" for option in shown]
    return ", ".join(pairs) or "one configuration"


def rank(sweep: Sweep) -> pd.DataFrame:
    """The configurations with finished jobs, best mean objective first; ties stay in the order of their values.

    Columns: rank, configuration (as in ``sweep.jobs``), the options, seeds (finished jobs), failed, unfinished, mean
    and std (n - 1) of objective and `METRICS`, parameters (trainable), the mean clips_per_second, the highest
    peak_memory_bytes. A mean is NaN if it is undefined for any of the jobs, as for an infinite loss. Such ones come
    last, after configurations with a failed job, such as one that has diverged.

    Raises:
        UserError: jobs of the same seed were evaluated on different videos, or with different classes.
    """
    known = sweep.done[sweep.done["held_out"] != ""]
    for _, jobs in known.groupby(SEED if SEED in sweep.options else "state"):
        first, others = jobs.iloc[0], jobs[jobs["held_out"] != jobs["held_out"].iloc[0]]
        if len(others):
            raise UserError(
                "jobs with the same classes, val and test videos, as others cannot be ranked",
                f"{first['job']} ({first['val_n']} val videos) and {others['job'].iloc[0]} ({others['val_n'].iloc[0]})",
                "Compare them with evaluate.py on one source; or remove those of one kind, and continue the sweep.",
                "different-held-out-videos",
            )
    groups = sweep.done.groupby("configuration", sort=False)
    table = groups[["job", *sweep.settings]].first().drop(columns="job").assign(seeds=groups.size())
    for state in ("failed", "unfinished"):
        counts = sweep.jobs.loc[sweep.jobs["state"] == state, "configuration"].value_counts()
        table[state] = counts.reindex(table.index, fill_value=0)
    for name in ("objective", *METRICS):
        # Rounded, as the mean depends on the order of the seeds, which must not break a tie.
        table[f"{name}_mean"] = groups[name].mean(skipna=False).round(12)
        table[f"{name}_std"] = groups[name].std(skipna=False)
    table["parameters"] = groups["parameters"].max()  # the same for all seeds
    table["clips_per_second"] = groups["clips_per_second"].mean()
    table["peak_memory_bytes"] = groups["peak_memory_bytes"].max()
    table = table.reset_index().sort_values(
        "objective_mean", ascending=sweep.lower_is_better, kind="stable", ignore_index=True
    )
    table = table.loc[(~is_complete(table)).sort_values(kind="stable").index].reset_index(drop=True)
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def is_complete(ranking: pd.DataFrame) -> pd.Series:
    """Whether no job of a configuration failed or lacks the objective: a mean over the other seeds would flatter."""
    return (ranking["failed"] == 0) & ranking["objective_mean"].notna()


def effects(sweep: Sweep) -> pd.DataFrame:
    """For each value of each option, the seed included: its finished jobs, mean and std of their objective."""
    rows = []
    for option in sweep.options:
        for value, found in sweep.done.dropna(subset="objective").groupby(option)["objective"]:
            rows.append((option, value, len(found), found.mean(), found.std()))
    return pd.DataFrame(rows, columns=["option", "value", "jobs", "mean", "std"])


def seed_spread(ranking: pd.DataFrame) -> float | None:
    """The standard deviation of the objective over seeds, pooled over the configurations; None with one seed each."""
    repeated = ranking[(ranking["seeds"] > 1) & ranking["objective_std"].notna()]
    if repeated.empty:
        return None
    freedom = repeated["seeds"] - 1
    return math.sqrt(float((freedom * repeated["objective_std"] ** 2).sum() / freedom.sum()))


def margin(ranking: pd.DataFrame, index: int) -> float:
    """The difference of the mean objective to the best, at rank ``index`` (from 0)."""
    means = ranking["objective_mean"]
    return abs(float(means[0] - means[index]))


def margin_noise(ranking: pd.DataFrame, index: int, spread: float) -> float:
    """Half the width of the 95 % interval of `margin` due to seeds, by Student's t: a few hardly tell the spread."""
    from scipy.stats import t  # takes a second

    repeated = ranking["seeds"][(ranking["seeds"] > 1) & ranking["objective_std"].notna()]
    factor = float(t.ppf(0.975, (repeated - 1).sum()))
    return factor * spread * math.sqrt(1 / ranking["seeds"][0] + 1 / ranking["seeds"][index])


def winning_job(sweep: Sweep, ranking: pd.DataFrame) -> pd.Series | None:
    """The job with the best objective in the best configuration; None if no objective is known."""
    if ranking.empty or math.isnan(ranking["objective_mean"][0]):
        return None
    jobs = sweep.done[sweep.done["configuration"] == ranking["configuration"][0]]
    return jobs.sort_values("objective", ascending=sweep.lower_is_better, kind="stable").iloc[0]


def mean_history(sweep: Sweep, configuration: int) -> pd.DataFrame:
    """The mean val/loss and val/accuracy of a configuration's jobs, by epoch, up to the last epoch that all have.

    Of the finished jobs, or of the unfinished ones if none is finished; empty without any epoch.
    """
    jobs = sweep.jobs[(sweep.jobs["configuration"] == configuration) & sweep.jobs["job"].isin(sweep.histories)]
    for state in ("done", "unfinished"):
        found = [sweep.histories[job] for job in jobs.loc[jobs["state"] == state, "job"]]
        if found:
            groups = pd.concat(found).groupby("epoch")
            return groups.mean()[groups.size() == len(found)]
    return pd.DataFrame(columns=["val/loss", "val/accuracy"])
