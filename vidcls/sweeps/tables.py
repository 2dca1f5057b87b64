"""A sweep's folder as tables: its jobs, its configurations ranked, the effect of each knob.

A configuration is what a job is but for its seed. Knob values are kept as the text that the command line would take:
"8", "0.001", "cnn_mean", "[32, 64]", "true", "null", and "" where a job does not have the knob.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from vidcls.errors import UserError, check_choice
from vidcls.metrics.objectives import LOWER_IS_BETTER
from vidcls.sweeps.jobs import FORMAT

SEED = "seed"
FIGURES = ("val_accuracy", "val_macro_f1", "val_loss")
COUNTS = ("val_n", "best_epoch", "parameters", "peak_memory_bytes")  # whole numbers, where known


@dataclass(frozen=True)
class Sweep:
    """What a sweep has left so far.

    Attributes:
        folder: where it is.
        overrides: of its command.
        knobs: what was swept, the seed included.
        objective: a key of `LOWER_IS_BETTER`.
        planned: how many jobs there will be; None where a sampler decides.
        jobs: a row per job, ordered by its knobs' values: job (its folder's name), configuration, state (done, failed,
            unfinished), a column per knob, objective, val_*, best_epoch, parameters (trainable), clips_per_second,
            fit_seconds, peak_memory_bytes, reason. NaN is unknown.
        job_overrides: the command line of each job.
        histories: its figures after each epoch, where there are any: a row per epoch.
    """

    folder: Path
    overrides: list[str]
    knobs: list[str]
    objective: str
    planned: int | None
    jobs: pd.DataFrame
    job_overrides: dict[str, list[str]]
    histories: dict[str, pd.DataFrame]

    @property
    def lower(self) -> bool:
        """Whether less of the objective is better."""
        return LOWER_IS_BETTER[self.objective]

    @property
    def settings(self) -> list[str]:
        """The knobs that make a configuration."""
        return [knob for knob in self.knobs if knob != SEED]

    @property
    def done(self) -> pd.DataFrame:
        """The finished jobs; a sampler may run one and the same job twice, which counts once."""
        return self.jobs[self.jobs["state"] == "done"].drop_duplicates(["configuration", *self._seed])

    @property
    def _seed(self) -> list[str]:
        return [SEED] if SEED in self.knobs else []

    def count(self, state: str) -> int:
        """How many jobs are in a state."""
        return int((self.jobs["state"] == state).sum())

    @property
    def not_started(self) -> int | None:
        """How many jobs have no folder yet; None where nobody knows how many there will be."""
        return None if self.planned is None else max(self.planned - len(self.jobs), 0)

    def check_writable(self) -> None:
        """Raises `UserError` where nothing can be written into the folder."""
        if not os.access(self.folder, os.W_OK):
            raise UserError("a sweep folder that can be written", str(self.folder), "Copy it to where you may write.")


# ---- reading


def read_sweep(folder: Path) -> Sweep:
    """Reads a sweep and all its jobs.

    Raises:
        UserError: it is no sweep, or one of its files is damaged.
    """
    if not (folder / "sweep.json").is_file():
        raise UserError(
            "the folder of a sweep in sweep=",
            f"{folder} without sweep.json",
            "Give a folder that `python train.py -m ...` has made, such as runs/sweep/...",
        )
    about = _read_json(folder / "sweep.json", "format", "overrides", "swept", "objective", "planned")
    if about["format"] != FORMAT:
        raise UserError(f"a sweep of format {FORMAT}", f"{about['format']} in {folder}", "Use the version it is of.")
    objective = check_choice("objective of sweep.json", about["objective"], tuple(LOWER_IS_BETTER))
    paths = sorted(path.parent for path in folder.glob("*/job.json"))
    plans = {path.name: _read_json(path / "job.json", "knobs", "overrides") for path in paths}
    knobs = list(dict.fromkeys([*about["swept"], *(knob for plan in plans.values() for knob in plan["knobs"])]))
    histories = {path.name: _read_history(path / "history.csv") for path in paths}
    rows = [_job(path, plans[path.name]["knobs"], knobs, objective, histories[path.name]) for path in paths]
    columns = ["job", "configuration", "state", *knobs, "objective", *FIGURES, "val_accuracy_low", "val_accuracy_high"]
    columns += ["val_n", "best_epoch", "parameters", "clips_per_second", "fit_seconds", "peak_memory_bytes", "reason"]
    jobs = pd.DataFrame(rows, columns=columns)
    numbers = [name for name in columns if name not in ("job", "configuration", "state", *knobs, "reason")]
    jobs = jobs.astype({name: "Int64" if name in COUNTS else "float64" for name in numbers})
    order = sorted(range(len(jobs)), key=lambda row: [value_order(jobs[knob][row]) for knob in knobs])
    return Sweep(
        folder,
        overrides=[str(text) for text in about["overrides"]],
        knobs=knobs,
        objective=objective,
        planned=about["planned"],
        jobs=jobs.iloc[order].reset_index(drop=True),
        job_overrides={name: [str(text) for text in plan["overrides"]] for name, plan in plans.items()},
        histories={name: table for name, table in histories.items() if len(table)},
    )


def _job(
    folder: Path, values: dict[str, Any], knobs: Sequence[str], objective: str, history: pd.DataFrame
) -> dict[str, Any]:
    texts = {knob: value_text(values[knob]) if knob in values else "" for knob in knobs}
    configuration = json.dumps([texts[knob] for knob in knobs if knob != SEED])
    row: dict[str, Any] = {"job": folder.name, "configuration": configuration, "state": "unfinished", **texts}
    row["reason"] = ""
    if len(history) and history["val/loss"].notna().any():
        row["best_epoch"] = int(history.loc[history["val/loss"].idxmin(), "epoch"])  # the one that best.ckpt holds
    if (folder / "metrics.json").is_file():
        metrics = _read_json(folder / "metrics.json", "val", "timing")
        val, timing = metrics["val"] or {}, metrics["timing"] or {}
        row |= {"state": "done", "objective": val.get(objective)}
        row |= {f"val_{name}": val.get(name) for name in ("accuracy", "macro_f1", "loss", "n")}
        row["val_accuracy_low"], row["val_accuracy_high"] = val.get("accuracy_ci95") or (None, None)
        row["parameters"] = metrics.get("parameters")
        row |= {name: timing.get(name) for name in ("clips_per_second", "fit_seconds", "peak_memory_bytes")}
    elif (folder / "error.txt").is_file():
        lines = (folder / "error.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        row |= {"state": "failed", "reason": lines[-1].strip() if lines else "unknown"}
    return row


def _read_json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and set(keys) <= set(content):
            return content
        problem = f"no {', '.join(keys)} in {path}"
    except (OSError, ValueError) as error:
        problem = f"{path}: {error}"
    remedy = "Check sweep=." if path.name == "sweep.json" else f"Remove {path.parent}, and continue the sweep."
    raise UserError(f"a whole {path.name}", problem, remedy)


def _read_history(path: Path) -> pd.DataFrame:
    names = ["epoch", "val/loss", "val/accuracy"]
    if not path.is_file() or not path.stat().st_size:
        return pd.DataFrame(columns=names)
    table = pd.read_csv(path)
    return table.reindex(columns=names)


# ---- values and names


def value_text(value: Any) -> str:
    """A knob's value as the command line takes it.

    Example:
        >>> [value_text(value) for value in (8, 1e-3, None, True, "cnn_mean", [32, 64])]
        ['8', '0.001', 'null', 'true', 'cnn_mean', '[32, 64]']
    """
    return value if isinstance(value, str) else json.dumps(value)


def number(text: str) -> float | None:
    """The number that a value is, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def value_order(text: str) -> tuple[bool, float, str]:
    """Sorts values: numbers by size, then words."""
    value = number(text)
    return (value is None, value or 0.0, text)


def values_of(column: Iterable[str]) -> list[str]:
    """The different values of a knob, in order."""
    return sorted(set(column), key=value_order)


def is_continuous(column: Sequence[str]) -> bool:
    """Whether a knob's values are too many numbers to be taken one by one, as where a sampler has drawn them.

    Example:
        >>> is_continuous(["8", "8", "16", "16"]), is_continuous(["0.1", "0.23", "0.31", "0.92"])
        (False, True)
    """
    values = values_of(column)
    if any(number(text) is None for text in values):
        return False
    fractions = any(not float(text).is_integer() for text in values)
    return len(values) > 12 or (fractions and len(values) > 3 and 2 * len(values) > len(column))


def short_names(knobs: Sequence[str]) -> dict[str, str]:
    """The last part of each knob's name, where it is that of no other.

    Example:
        >>> short_names(["model.lstm.hidden_size", "data.seed", "seed"])
        {'model.lstm.hidden_size': 'hidden_size', 'data.seed': 'data.seed', 'seed': 'seed'}
    """
    ends = [knob.rsplit(".", 1)[-1] for knob in knobs]
    return {knob: end if ends.count(end) == 1 else knob for knob, end in zip(knobs, ends, strict=True)}


def short_value(text: str) -> str:
    """A value for people: three digits of a long fraction.

    Example:
        >>> short_value("0.00012345678"), short_value("0.001"), short_value("12345678")
        ('0.000123', '0.001', '12345678')
    """
    value = number(text)
    return text if value is None or len(text) <= 6 or value.is_integer() else f"{value:.3g}"


def label(row: pd.Series, sweep: Sweep) -> str:
    """A configuration in few words: those of its knobs that differ between jobs."""
    names = short_names(sweep.knobs)
    varying = [knob for knob in sweep.settings if sweep.jobs[knob].nunique() > 1] or sweep.settings
    return ", ".join(f"{names[knob]}={short_value(row[knob])}" for knob in varying if row[knob]) or "one configuration"


# ---- tables


def rank(sweep: Sweep) -> pd.DataFrame:
    """The configurations with finished jobs, best mean objective first; equals stay in the order of their values.

    Columns: rank, the knobs, seeds (finished jobs), failed, unfinished, mean and std of objective and val_*, trainable
    parameters, the mean clips_per_second, the highest peak_memory_bytes; configuration, as in ``sweep.jobs``. The
    standard deviation is the sample's (n - 1), NaN for one job. A mean is NaN where one of the jobs has none, as where
    its loss is infinite: leaving that job out would flatter. Such configurations come last.
    """
    rows = []
    for configuration, group in sweep.done.groupby("configuration", sort=False):
        states = sweep.jobs.loc[sweep.jobs["configuration"] == configuration, "state"]
        row: dict[str, Any] = {knob: group[knob].iloc[0] for knob in sweep.settings} | {"seeds": len(group)}
        row |= {state: int((states == state).sum()) for state in ("failed", "unfinished")}
        for name in ("objective", *FIGURES):
            # Rounded: equal figures of seeds in another order must be a tie.
            row[f"{name}_mean"] = round(group[name].mean(skipna=False), 12)
            row[f"{name}_std"] = group[name].std(skipna=False)
        row["parameters"] = group["parameters"].max()  # the same for all seeds
        row["clips_per_second"] = group["clips_per_second"].mean()
        row["peak_memory_bytes"] = group["peak_memory_bytes"].max()
        rows.append(row | {"configuration": configuration})
    figures = [f"{name}_{what}" for name in ("objective", *FIGURES) for what in ("mean", "std")]
    columns = [*sweep.settings, "seeds", "failed", "unfinished", *figures]
    table = pd.DataFrame(
        rows, columns=[*columns, "parameters", "clips_per_second", "peak_memory_bytes", "configuration"]
    )
    table = table.sort_values("objective_mean", ascending=sweep.lower, kind="stable", ignore_index=True)
    table = table.astype({"parameters": "Int64", "peak_memory_bytes": "Int64"})
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def effects(sweep: Sweep) -> pd.DataFrame:
    """For each knob, seed included, and each of its values: how many finished jobs, mean and std of their objective."""
    done = sweep.done.dropna(subset="objective")
    rows = []
    for knob in sweep.knobs:
        for value in values_of(done[knob]):
            found = done.loc[done[knob] == value, "objective"]
            rows.append({"knob": knob, "value": value, "jobs": len(found), "mean": found.mean(), "std": found.std()})
    return pd.DataFrame(rows, columns=["knob", "value", "jobs", "mean", "std"])


def is_balanced(jobs: pd.DataFrame, knobs: Sequence[str]) -> bool:
    """Whether every value of a knob was tried equally with every value of each other knob, as in a full grid."""
    for one, other in combinations(knobs, 2):
        counts = pd.crosstab(jobs[one], jobs[other])
        expected = counts.sum(axis=1).to_numpy()[:, None] * counts.sum(axis=0).to_numpy()[None, :]
        if (counts.to_numpy() * len(jobs) != expected).any():
            return False
    return True


def seed_spread(ranking: pd.DataFrame) -> float | None:
    """The standard deviation of the objective over seeds, pooled over the configurations; None without repetitions.

    Three seeds say little about the spread of one configuration; those of all together say more.
    """
    repeated = ranking[(ranking["seeds"] > 1) & ranking["objective_std"].notna()]
    if repeated.empty:
        return None
    freedom = repeated["seeds"] - 1
    return math.sqrt(float((freedom * repeated["objective_std"] ** 2).sum() / freedom.sum()))


def lead(ranking: pd.DataFrame, place: int) -> float:
    """By how much the first is better than the one at ``place`` (from 0)."""
    means = ranking["objective_mean"]
    return abs(float(means[0] - means[place]))


def lead_noise(ranking: pd.DataFrame, place: int, spread: float) -> float:
    """What seeds alone make of the difference of those two means: twice its standard error."""
    return 2 * spread * math.sqrt(1 / ranking["seeds"][0] + 1 / ranking["seeds"][place])


def winning_job(sweep: Sweep, ranking: pd.DataFrame) -> pd.Series | None:
    """The job with the best objective in the best configuration; None where no objective is known."""
    if ranking.empty or math.isnan(ranking["objective_mean"][0]):
        return None
    jobs = sweep.done[sweep.done["configuration"] == ranking["configuration"][0]]
    return jobs.sort_values("objective", ascending=sweep.lower, kind="stable").iloc[0]


def pareto_front(costs: Sequence[float], means: Sequence[float], lower: bool) -> list[int]:
    """Where nothing is both as cheap and better, or cheaper and as good; from cheap to dear.

    Example:
        >>> pareto_front([1.0, 2.0, 3.0, 3.0], [0.5, 0.4, 0.9, 0.8], lower=False)
        [0, 2]
    """
    better = [value if lower else -value for value in means]
    front: list[int] = []
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], better[place], place)):
        if not front or better[place] < better[front[-1]]:
            front.append(place)
    return front
