"""The report of a sweep, in its folder and on the terminal: tables, plots and caveats."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from vidcls.cli import shell_command, value_text
from vidcls.files import write_atomically
from vidcls.plots import sweep_plots
from vidcls.plots.style import save_figures
from vidcls.sweeps.tables import (
    METRICS,
    Sweep,
    effects,
    is_complete,
    label,
    margin,
    margin_noise,
    mean_history,
    rank,
    seed_spread,
    winning_job,
)
from vidcls.sweeps.winner import describe_test, read_test

MAX_ROWS = 50  # of the table in report.md; ranking.csv holds all
MAX_PRINTED = 10
NO_WINNER = "No job with a defined objective has finished yet: there is nothing to rank."
PLOTS = {
    "heatmap": "Two options at a time",
    "pareto": "Objective against cost",
    "curves": "Learning curves",
    "effects": "Each option on its own",
}


def write_report(sweep: Sweep, console: Console) -> None:
    """Writes the report of a sweep into its folder ``report``, and prints a summary."""
    sweep.check_writable()
    folder, ranking, tested = sweep.folder / "report", rank(sweep), read_test(sweep)
    figures = sweep_figures(sweep, ranking)
    for name in set(PLOTS) - set(figures):  # of an earlier report, which may have had more
        (folder / f"{name}.png").unlink(missing_ok=True)
    save_figures(figures, folder)
    for name, table in {"jobs": sweep.jobs, "ranking": ranking, "effects": effects(sweep)}.items():
        text = table.drop(columns="configuration", errors="ignore").to_csv(index=False, float_format="%.9g")
        write_atomically(folder / f"{name}.csv", text.encode())
    write_atomically(folder / "report.md", report_text(sweep, ranking, tested, list(figures)).encode())
    _print(sweep, ranking, tested, console)


def sweep_figures(sweep: Sweep, ranking: pd.DataFrame) -> dict[str, Any]:
    """The matplotlib figures of a sweep, by name (see `PLOTS`), as far as it has enough jobs."""
    objective, done = (sweep.objective_name, sweep.lower_is_better), sweep.done.dropna(subset="objective")
    complete = is_complete(ranking)
    ranked = ranking[complete | (not complete.any())]  # what may win
    fair = sweep.jobs["configuration"].isin(ranked["configuration"])
    discrete = [option for option in sweep.varying(sweep.settings) if option not in sweep.continuous]
    averaged = [option for option in sweep.varying(sweep.options) if option not in discrete]
    figures: dict[str, Any] = {}
    if len(discrete) > 1 and len(done):
        jobs = sweep.jobs.assign(objective=sweep.jobs["objective"].where(fair))
        figures["heatmap"] = sweep_plots.heatmap_figure(jobs, discrete, averaged, *objective)
    labels = [label(row, sweep) for _, row in ranked.iterrows()]
    figures["pareto"] = sweep_plots.pareto_figure(ranked.assign(label=labels), *objective)
    ranks = dict(zip(ranking["configuration"], ranking["rank"], strict=True))
    curves = []
    for number in dict.fromkeys([*ranks, *sweep.jobs["configuration"].tolist()]):
        text = label(sweep.jobs[sweep.jobs["configuration"] == number].iloc[0], sweep)
        text = f"#{ranks[number]}  {text}" if number in ranks else f"{text} (unfinished)"
        curves.append((text, mean_history(sweep, number), number in ranks))
    curves = [curve for curve in curves if len(curve[1])]
    if curves:
        figures["curves"] = sweep_plots.curves_figure(curves)
    if sweep.options and len(done):
        figures["effects"] = sweep_plots.effects_figure(done, sweep.options, sweep.continuous, sweep.objective_name)
    return {name: figure for name, figure in figures.items() if figure is not None}


# ---- sentences


def progress(sweep: Sweep) -> str:
    """Such as "7 done, 1 failed, 0 unfinished, 4 not started of 12 jobs"."""
    states = ", ".join(f"{sweep.count(state)} {state}" for state in ("done", "failed", "unfinished"))
    if sweep.planned is None:
        return f"{states} of {len(sweep.jobs)} jobs so far (a sampler chooses them)"
    return f"{states}, {sweep.not_started} not started of {sweep.planned} jobs"


def caveats(sweep: Sweep, ranking: pd.DataFrame) -> list[str]:
    """What to keep in mind when reading the ranking."""
    sizes = sorted(sweep.done["val_n"].dropna().unique())
    comparable, spread = int(is_complete(ranking).sum()), seed_spread(ranking)
    notes = ["All metrics are on the val split, which also chose each job's best epoch: expect less on new videos."]
    if len(sizes) > 1:
        notes.append(f"The jobs were evaluated on different val splits ({sizes[0]} to {sizes[-1]} videos).")
    elif sizes:
        notes.append(f"The val split holds {sizes[0]} videos: each counts for {1 / sizes[0]:.3f} accuracy.")
    if sweep.done.loc[sweep.done["held_out"] != "", "held_out"].nunique() > 1:  # within a seed they are the same
        notes.append(
            "Each seed has drawn other splits: test videos of one are train or val videos of another, so a test of "
            "the winner may be optimistic. With data.seed=0 all have the same."
        )
    if comparable > 1:
        lead = f"The winner leads the runner-up by {margin(ranking, 1):.3f} {sweep.metric}"
        if spread is None:
            notes.append(f"{lead}. Without other seeds this may be chance: add seed=0,1,2 to the sweep.")
        elif spread < 1e-9:  # as with optim=logistic
            notes.append(f"{lead}. Seeds change nothing here, so they do not tell whether that is chance.")
        else:
            ties = [margin(ranking, k) <= margin_noise(ranking, k, spread) for k in range(1, comparable)]
            notes.append(
                f"{lead}, {'within' if ties[0] else 'above'} the seed noise of {margin_noise(ranking, 1, spread):.3f} "
                f"(95 % confidence; standard deviation over seeds {spread:.3f}). {sum(ties)} of the other "
                f"{comparable - 1} configurations are within the noise."
            )
    if comparable and ranking["seeds"].nunique() > 1:
        notes.append("Some configurations have fewer seeds than others: their means are less certain.")
    if len(ranking) > comparable:
        last = len(ranking) - comparable
        notes.append(f"{last} configurations come last: a job of theirs failed or has no {sweep.metric}.")
    if sweep.count("failed"):
        notes.append(f"{sweep.count('failed')} jobs failed and are not ranked.")
    if sweep.count("unfinished") or sweep.not_started:
        notes.append("The sweep is not finished: the order may change.")
    return notes


def repeat_command(sweep: Sweep, job: str) -> str:
    """The shell command that trains a job again."""
    overrides = sweep.job_overrides[job]
    # A preset of a sweep would start the whole sweep.
    single = ["hydra.mode=RUN"] if any(text.startswith("sweep=") for text in overrides) else []
    return shell_command("python", "train.py", *overrides, *single)


# ---- report.md


def report_text(sweep: Sweep, ranking: pd.DataFrame, tested: dict[str, Any] | None, plots: Sequence[str]) -> str:
    """The text of report.md, with the ``plots`` that were drawn."""
    winner = winning_job(sweep, ranking)
    command = shell_command("python", "train.py", "-m", *sweep.overrides)
    parts = [f"# Sweep {_escape(sweep.folder.resolve().name)}", _code(command)]
    parts += [f"Objective: {sweep.objective_name}.", f"Jobs: {progress(sweep)}."]
    if winner is None:
        parts.append(NO_WINNER)
    else:
        seeds = f"mean of {ranking['seeds'][0]} seeds; its best job" if ranking["seeds"][0] > 1 else "one job"
        value, best = _mean(ranking.iloc[0], "objective"), f"{_escape(winner['job'])}, {winner['objective']:.3f}"
        untested = "The test split has not been used by this sweep. `test_best=true` tests this job, once. The command "
        untested += "above tests at its end, too."
        parts += ["## The winner", f"**{_escape(label(winner, sweep))}**: {sweep.metric} {value} ({seeds}: {best})."]
        parts += ["To train it again:", _code(repeat_command(sweep, winner["job"]))]
        parts.append(untested if tested is None else _escape(describe_test(tested, winner)))
        parts += ["## How far to trust it", "\n".join(f"- {_escape(text)}" for text in caveats(sweep, ranking))]
    if len(ranking):
        parts += ["## Ranking", _markdown(ranking_table(sweep, ranking.head(MAX_ROWS)))]
        parts.append(
            f"The best {MAX_ROWS} at most; mean ± standard deviation over seeds. clips/s is training speed, lower if "
            "jobs ran side by side. Without a GPU, memory is that of the process, with what earlier jobs left there."
        )
    for name in plots:
        parts += [f"## {PLOTS[name]}", f"![{PLOTS[name]}]({name}.png)"]
    if winner is not None and sweep.options:
        parts += _effects(sweep)
    failed = sweep.jobs.loc[sweep.jobs["state"] == "failed", ["job", "reason"]]
    if len(failed):
        parts += ["## Failed jobs", _markdown(failed)]
    parts.append("All metrics: [jobs.csv](jobs.csv), [ranking.csv](ranking.csv), [effects.csv](effects.csv).")
    return "\n\n".join(parts) + "\n"


def ranking_table(sweep: Sweep, ranking: pd.DataFrame) -> pd.DataFrame:
    """The ranking as text, a row per configuration; of the options only those that differ between configurations."""
    table = pd.DataFrame({"rank": ranking["rank"].astype(str)})
    for option in sweep.varying(sweep.settings):
        table[sweep.names[option]] = ranking[option].map(value_text)
    table["seeds"] = [_seeds(row) for _, row in ranking.iterrows()]
    for name in ("objective", *METRICS):
        title = sweep.metric if name == "objective" else name.replace("_", " ")
        if title not in table:
            table[title] = [_mean(row, name) for _, row in ranking.iterrows()]
    table["parameters"] = _texts(ranking["parameters"], "{:,}")
    table["clips/s"] = _texts(ranking["clips_per_second"], "{:.1f}")
    table["peak memory"] = _texts(ranking["peak_memory_bytes"] / 2**20, "{:.0f} MiB")
    return table


def _texts(column: pd.Series, pattern: str) -> list[str]:
    return ["-" if pd.isna(value) else pattern.format(value) for value in column]


def _effects(sweep: Sweep) -> list[str]:
    table = effects(sweep)
    table = table[~table["option"].isin(sweep.continuous)]
    cells = {name: _texts(table[name], "{:.3f}") for name in ("mean", "std")}
    table = table.assign(value=table["value"].map(value_text), jobs=table["jobs"].astype(str), **cells)
    parts = [f"Mean {sweep.objective_name} of the finished jobs with each value.", _markdown(table)]
    if sweep.continuous:
        parts.append(f"Values that hardly repeat are in the plot alone: {_escape(', '.join(sweep.continuous))}.")
    done = sweep.done.dropna(subset="objective")
    if len(done) < math.prod(done[option].nunique() for option in sweep.options):
        parts.append(
            "**Unbalanced:** not every combination of values was tried, so a mean also depends on the other options. "
            "Compare configurations that differ in one option alone before you conclude."
        )
    return parts


def _seeds(row: pd.Series) -> str:
    others = [f"{row[state]} {state}" for state in ("failed", "unfinished") if row[state]]
    return f"{row['seeds']}" + (f" ({', '.join(others)})" if others else "")


def _mean(row: pd.Series, name: str) -> str:
    mean, std = row[f"{name}_mean"], row[f"{name}_std"]
    if pd.isna(mean):
        return "-"
    return f"{mean:.3f}" if pd.isna(std) else f"{mean:.3f} ± {std:.3f}"


def _escape(text: str) -> str:
    """Text on one line, with Markdown's special characters escaped."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())


def _code(command: str) -> str:
    fence = "```"
    while fence in command:
        fence += "`"
    return f"{fence}sh\n{command}\n{fence}"


def _markdown(table: pd.DataFrame) -> str:
    return table.map(_escape).rename(columns=_escape).to_markdown(index=False, disable_numparse=True)


# ---- the terminal


def _print(sweep: Sweep, ranking: pd.DataFrame, tested: dict[str, Any] | None, console: Console) -> None:
    winner, lines = winning_job(sweep, ranking), [f"Jobs: {progress(sweep)}."]
    if winner is None:
        lines.append(NO_WINNER)
    else:
        table = ranking_table(sweep, ranking.head(MAX_PRINTED)).loc[:, : sweep.metric]
        lines += [f"The best {len(table)} of {len(ranking)} configurations by mean {sweep.objective_name}:", ""]
        lines += [table.to_string(index=False), "", *(f"- {text}" for text in caveats(sweep, ranking))]
        lines.append(f"To train the best job again: {repeat_command(sweep, winner['job'])}")
    if tested is not None:
        lines.append(describe_test(tested, winner))
    failed = sweep.jobs[sweep.jobs["state"] == "failed"].head(MAX_PRINTED)
    lines += [f"Failed: {row.job}: {row.reason}" for row in failed.itertuples()]
    lines.append(f"Report: {sweep.folder / 'report' / 'report.md'}")
    console.print(Text("\n".join(lines)), soft_wrap=True)
