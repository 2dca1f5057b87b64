"""What report.py leaves in a sweep's folder: tables, pictures, and words that say how far to trust them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vidcls.files import write_atomically
from vidcls.plots.style import save_figures
from vidcls.plots.sweep_plots import curves_figure, effects_figure, heatmap_figure, objective_name, pareto_figure
from vidcls.sweeps.tables import (
    Sweep,
    effects,
    is_balanced,
    is_continuous,
    label,
    lead,
    lead_noise,
    rank,
    seed_spread,
    short_names,
    short_value,
    values_of,
    winning_job,
)
from vidcls.sweeps.winner import read_test, tested_words

MOST_ROWS = 50  # of the table in report.md; ranking.csv holds all
MOST_PRINTED = 10
PICTURES = {
    "effects": "Each knob on its own",
    "heatmap": "Two knobs at a time",
    "pareto": "Objective against cost",
    "curves": "Learning curves",
}


def write_report(sweep: Sweep, console: Console) -> None:
    """Writes the report of a sweep into its folder ``report``, and prints it in short.

    Raises:
        UserError: the folder cannot be written, or its test.json is damaged.
    """
    sweep.check_writable()
    folder, ranking, tested = sweep.folder / "report", rank(sweep), read_test(sweep)
    tables = {"jobs": sweep.jobs.drop(columns="configuration")}
    figures = {"curves": curves_figure(sweep, ranking)}
    if len(ranking):
        tables |= {"ranking": ranking.drop(columns="configuration"), "effects": effects(sweep)}
    if winning_job(sweep, ranking) is not None:
        figures |= {"effects": effects_figure(sweep), "heatmap": heatmap_figure(sweep)}
        figures["pareto"] = pareto_figure(sweep, ranking)
    drawn = {name: figure for name in PICTURES if (figure := figures.get(name)) is not None}
    for name in {"ranking", "effects"} - set(tables):  # of an earlier report, when there was more
        (folder / f"{name}.csv").unlink(missing_ok=True)
    for name in set(PICTURES) - set(drawn):
        (folder / f"{name}.png").unlink(missing_ok=True)
    save_figures(drawn, folder)
    for name, table in tables.items():
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.9g").encode())
    write_atomically(folder / "report.md", report_text(sweep, ranking, tested, list(drawn)).encode())
    _print(sweep, ranking, tested, console)


# ---- words


def count_words(sweep: Sweep) -> str:
    """How far the sweep is, as in "7 done, 1 failed, 0 unfinished, 4 not started of 12 jobs"."""
    states = ", ".join(f"{sweep.count(state)} {state}" for state in ("done", "failed", "unfinished"))
    if sweep.planned is None:
        return f"{states} of {len(sweep.jobs)} jobs so far (a sampler chooses them)"
    return f"{states}, {sweep.not_started} not started of {sweep.planned} jobs"


def caveats(sweep: Sweep, ranking: pd.DataFrame) -> list[str]:
    """How far to trust the ranking, a sentence or a few each."""
    jobs, objective = sweep.done, f"val {sweep.objective.replace('_', ' ')}"
    said = ["All figures are of the val split, which also chose each job's epoch: they are optimistic."]
    if len(ranking) > 1:
        said.append(
            f"The best of {len(ranking)} configurations is partly the luckiest: on new videos it will look worse."
        )
    sizes = sorted(jobs["val_n"].dropna().unique())
    if len(sizes) > 1:
        said.append(
            f"The jobs were judged on different val splits ({sizes[0]} to {sizes[-1]} videos): compare them with care."
        )
    elif sizes:
        winner = winning_job(sweep, ranking)
        interval = ""
        if winner is not None and not math.isnan(winner["val_accuracy_low"]):
            low, high = winner["val_accuracy_low"], winner["val_accuracy_high"]
            interval = f" The 95 % interval of the winner's best job goes from {low:.3f} to {high:.3f} accuracy."
        said.append(f"The val split holds {sizes[0]} videos: one of them is {1 / sizes[0]:.3f} accuracy.{interval}")
    comparable = int(ranking["objective_mean"].notna().sum())
    spread = seed_spread(ranking)
    if comparable > 1 and spread is None:
        said.append(
            f"Nothing was repeated with another seed. The winner leads the runner-up by {lead(ranking, 1):.3f} "
            f"{objective}, and nobody knows how much of that is chance: sweep seed=0,1,2 too."
        )
    elif comparable > 1 and spread is not None:
        noise = lead_noise(ranking, 1, spread)
        within = [place for place in range(1, comparable) if lead(ranking, place) <= lead_noise(ranking, place, spread)]
        said.append(
            f"With another seed the {objective} of one configuration varies by {spread:.3f} (standard deviation, "
            f"pooled over the configurations). The winner leads the runner-up by {lead(ranking, 1):.3f}: "
            + (
                f"within what seeds alone do to two such means (up to {noise:.3f}). "
                if 1 in within
                else f"more than seeds alone do to two such means (up to {noise:.3f}). "
            )
            + f"{len(within)} of the other {comparable - 1} configurations cannot be told from the winner in this way."
        )
    if comparable and ranking["seeds"].nunique() > 1:
        said.append(
            "Some configurations have fewer seeds than others: the mean of few is more often extreme, either way."
        )
    undefined = len(ranking) - comparable
    if undefined:
        said.append(f"{undefined} configurations come last, as the {objective} of some of their jobs is not defined.")
    if sweep.count("failed"):
        said.append(f"{sweep.count('failed')} failed: what would have come of them is not known.")
    if sweep.count("unfinished") or sweep.not_started:
        said.append("The sweep is not finished: the order may change.")
    return said


def repeat_command(sweep: Sweep, job: str) -> str:
    """What trains a job again, for a shell."""
    overrides = sweep.job_overrides[job]
    # A preset brings a sweep of its own, and settings that the job needs.
    alone = ["hydra.mode=RUN"] if any(text.startswith("sweep=") for text in overrides) else []
    return shlex.join(["python", "train.py", *overrides, *alone])


def report_text(sweep: Sweep, ranking: pd.DataFrame, tested: dict[str, Any] | None, pictures: Sequence[str]) -> str:
    """report.md; ``pictures`` are the names of those that were drawn."""
    winner = winning_job(sweep, ranking)
    parts = [f"# Sweep {_plain(sweep.folder.resolve().name)}", _swept(sweep), f"Jobs: {count_words(sweep)}."]
    if winner is None:
        parts.append(_nothing(sweep))
    else:
        parts += ["## The winner", _winner(sweep, ranking, winner, tested)]
        parts += ["## How far to trust it", "\n".join(f"- {_plain(text)}" for text in caveats(sweep, ranking))]
    if len(ranking):
        parts += ["## Ranking", _ranking_table(sweep, ranking)]
    parts += [f"![{PICTURES[name]}]({name}.png)" for name in pictures if name != "effects"]
    if winner is not None and sweep.knobs:
        parts += [f"## {PICTURES['effects']}", *_effects(sweep), f"![{PICTURES['effects']}](effects.png)"]
    failed = sweep.jobs[sweep.jobs["state"] == "failed"]
    if len(failed):
        rows = [[row.job, row.reason] for row in failed.itertuples()]
        parts += ["## Failed jobs", _table(["job", "reason"], rows)]
    names = ["jobs.csv"] + (["ranking.csv", "effects.csv"] if len(ranking) else [])
    parts.append("All figures: " + ", ".join(f"[{name}]({name})" for name in names) + ".")
    return "\n\n".join(parts) + "\n"


def _nothing(sweep: Sweep) -> str:
    if sweep.count("done") == 0:
        return "No job has finished yet: there is nothing to rank."
    return f"No configuration has a defined {objective_name(sweep)}: there is no winner."


def _swept(sweep: Sweep) -> str:
    rows = []
    for knob in sweep.knobs:
        values = values_of(sweep.jobs[knob])
        many = is_continuous(list(sweep.jobs[knob])) or len(values) > 20
        shown = f"{short_value(values[0])} to {short_value(values[-1])} ({len(values)} values)" if many else None
        rows.append([knob, shown or ", ".join(value or "(not set)" for value in values) or "-"])
    command = shlex.join(["python", "train.py", "-m", *sweep.overrides])
    return f"{_code(command)}\n\n{_table(['knob', 'values'], rows)}\n\nObjective: {objective_name(sweep)}."


def _winner(sweep: Sweep, ranking: pd.DataFrame, winner: pd.Series, tested: dict[str, Any] | None) -> str:
    best = ranking.iloc[0]
    seeds = f"mean of {best['seeds']} seeds; its best job" if best["seeds"] > 1 else "one job"
    lines = [
        f"**{_plain(label(winner, sweep))}**: val {sweep.objective.replace('_', ' ')} "
        f"{_mean(best, 'objective')} ({seeds}: {_plain(winner['job'])}, {winner['objective']:.3f}). To train it again:",
        _code(repeat_command(sweep, winner["job"])),
    ]
    if tested is None:
        lines.append(
            "The test split has not been used by this sweep. `test_best=true` tests this job, once. The command above "
            "tests too, at its end: whoever looks has used the test split."
        )
    else:
        lines.append(_plain(tested_words(tested, winner)))
    return "\n\n".join(lines)


def _ranking_table(sweep: Sweep, ranking: pd.DataFrame) -> str:
    figures = ["val_accuracy", "val_macro_f1", "val_loss"]
    figures = [name for name in figures if name != f"val_{sweep.objective}"]
    knobs = _varied(sweep, ranking)
    heads = [*_heads(sweep, knobs), *(name.replace("_", " ") for name in figures)]
    rows = [
        [*_cells(row, knobs), *(_mean(row, name) for name in figures), *_costs(row)]
        for _, row in ranking.head(MOST_ROWS).iterrows()
    ]
    text = _table([*heads, "parameters", "clips/s", "peak memory"], rows)
    if len(ranking) > MOST_ROWS:
        text += f"\n\nThe best {MOST_ROWS} of {len(ranking)}; the others are in [ranking.csv](ranking.csv)."
    return (
        f"{text}\n\nMean ± standard deviation over seeds; clips/s as trained, slower where jobs ran side by side. "
        "Without a GPU, memory is that of the process, with what it still holds of the jobs before."
    )


def _varied(sweep: Sweep, ranking: pd.DataFrame) -> list[str]:
    """The knobs that are not the same for all configurations, also where they are for the best."""
    return [knob for knob in sweep.settings if ranking[knob].nunique() > 1]


def _heads(sweep: Sweep, knobs: list[str]) -> list[str]:
    names = short_names(sweep.knobs)
    return ["", *(names[knob] for knob in knobs), "seeds", f"val {sweep.objective.replace('_', ' ')}"]


def _cells(row: pd.Series, knobs: list[str]) -> list[str]:
    values = (short_value(row[knob]) or "-" for knob in knobs)
    return [str(row["rank"]), *values, _seeds(row), _mean(row, "objective")]


def _effects(sweep: Sweep) -> list[str]:
    done = sweep.done.dropna(subset="objective")
    parts = [f"Mean {objective_name(sweep)} of the finished jobs with each value."]
    if not is_balanced(done, sweep.knobs):
        parts.append(
            "**Unbalanced:** not every value was tried equally with every value of the other knobs, so a mean also "
            "says what the others were. Compare rows that differ in one knob alone before you conclude."
        )
    table = effects(sweep)
    repeated = [knob for knob in sweep.knobs if not is_continuous(list(sweep.jobs[knob]))]
    rows = [
        [
            row.knob,
            row.value or "(not set)",
            str(row.jobs),
            f"{row.mean:.3f}",
            "-" if math.isnan(row.std) else f"{row.std:.3f}",
        ]
        for row in table.itertuples()
        if row.knob in repeated
    ]
    if rows:
        parts.append(_table(["knob", "value", "n", "mean", "standard deviation"], rows))
    others = [knob for knob in sweep.knobs if knob not in repeated]
    if others:
        parts.append(f"Values that hardly repeat are in the picture alone: {_plain(', '.join(others))}.")
    return parts


def _seeds(row: pd.Series) -> str:
    lost = [f"{row[state]} {state}" for state in ("failed", "unfinished") if row[state]]
    return f"{row['seeds']}" + (f" ({', '.join(lost)})" if lost else "")


def _mean(row: pd.Series, name: str) -> str:
    mean, std = row[f"{name}_mean"], row[f"{name}_std"]
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(std) else f"{mean:.3f} ± {std:.3f}"


def _costs(row: pd.Series) -> list[str]:
    parameters = "-" if pd.isna(row["parameters"]) else f"{row['parameters']:,}"
    speed = "-" if math.isnan(row["clips_per_second"]) else f"{row['clips_per_second']:.1f}"
    return [parameters, speed, _memory(row["peak_memory_bytes"])]


def _memory(size: Any) -> str:
    return "-" if pd.isna(size) else f"{size / 2**20:.0f} MiB"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())


def _code(command: str) -> str:
    fence = "```"
    while fence in command:
        fence += "`"
    return f"{fence}sh\n{command}\n{fence}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell if line is lines[1] else _plain(cell) for cell in line) + " |" for line in lines
    )


# ---- on the terminal


def _print(sweep: Sweep, ranking: pd.DataFrame, tested: dict[str, Any] | None, console: Console) -> None:
    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    winner = winning_job(sweep, ranking)
    say(f"Jobs: {count_words(sweep)}.")
    if winner is None:
        say(_nothing(sweep))
    else:
        say(f"Ranked by mean {objective_name(sweep)}:")
        table, knobs = Table(), _varied(sweep, ranking)
        for head in _heads(sweep, knobs):
            table.add_column(Text(head), justify="right", overflow="fold")
        for _, row in ranking.head(MOST_PRINTED).iterrows():
            table.add_row(*map(Text, _cells(row, knobs)))
        console.print(table)
        if len(ranking) > MOST_PRINTED:
            say(f"The best {MOST_PRINTED} of {len(ranking)} configurations.")
        for text in caveats(sweep, ranking):
            say(f"- {text}")
        say(f"To train the best job again: {repeat_command(sweep, winner['job'])}")
    if tested is not None:
        say(tested_words(tested, winner))
    for row in sweep.jobs[sweep.jobs["state"] == "failed"].head(MOST_PRINTED).itertuples():
        say(f"Failed: {row.job}: {row.reason}")
    say(f"Report: {sweep.folder / 'report' / 'report.md'}")
