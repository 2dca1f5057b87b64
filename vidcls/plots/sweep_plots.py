"""Figures of a sweep: what each knob does, where the best cells are, what good figures cost, how jobs learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from vidcls.plots.style import BLUE, GREEN, INK, QUIET, VERMILION, ink_on, new_figure, printable, soften
from vidcls.sweeps.tables import (
    SEED,
    Sweep,
    is_continuous,
    label,
    number,
    pareto_front,
    short_names,
    short_value,
    values_of,
)

COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00")  # Okabe & Ito, as in figures
PREFERRED = ("data.num_frames", "data.resolution")  # as the axes of the heatmap
MOST_PANELS = 24
MOST_NAMED = 15  # of the Pareto front
OTHERS = "#b9b9b9"
LOG_SPAN = 20  # values that span a larger factor get a logarithmic axis


def objective_name(sweep: Sweep) -> str:
    """As in "val accuracy (higher is better)"."""
    return f"val {sweep.objective.replace('_', ' ')} ({'lower' if sweep.lower else 'higher'} is better)"


def effects_figure(sweep: Sweep) -> Figure | None:
    """A panel per knob: each finished job a dot, and the mean of each value that several jobs share.

    None where nothing was swept.
    """
    if not sweep.knobs:
        return None
    done = sweep.done.dropna(subset="objective")
    columns = 2 if len(sweep.knobs) == 4 else min(3, len(sweep.knobs))
    rows = math.ceil(len(sweep.knobs) / columns)
    figure = new_figure(1.0 + 2.9 * rows, f"Each knob on its own: {len(done)} finished jobs")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in grid[len(sweep.knobs) :]:
        axes.set_axis_off()
    for axes, knob in zip(grid, sweep.knobs, strict=False):
        if is_continuous(list(sweep.jobs[knob])):
            _continuous_panel(axes, [float(text) for text in done[knob]], done["objective"])
        else:
            _discrete_panel(axes, done[knob], done["objective"], round(90 / columns), joined=knob != SEED)
        axes.set_title(printable(knob, round(100 / columns)), loc="left", color=INK, fontsize=10)
        soften(axes)
    figure.supylabel(objective_name(sweep), fontsize=10)
    figure.supxlabel("grey: one job each; blue: mean of the jobs with that value", fontsize=10, color=QUIET)
    return figure


def _continuous_panel(axes: Axes, values: Sequence[float], objective: pd.Series) -> None:
    axes.plot(values, objective, linestyle="", marker="o", markersize=5, color=QUIET, alpha=0.7, markeredgewidth=0)
    if _is_wide(values):
        axes.set_xscale("log")


def _discrete_panel(axes: Axes, column: pd.Series, objective: pd.Series, room: int, joined: bool) -> None:
    values = values_of(column)
    means = []
    for place, value in enumerate(values):
        found = objective[column == value].sort_values().to_numpy()
        aside = 0.12 * (np.arange(len(found)) % 3 - 1) if len(found) > 2 else np.zeros(len(found))  # less overlap
        axes.plot(place + aside, found, linestyle="", marker="o", ms=5, color=QUIET, alpha=0.6, markeredgewidth=0)
        means.append(found.mean() if len(found) > 1 else math.nan)
    ordered = joined and all(number(value) is not None for value in values)
    axes.plot(range(len(values)), means, color=BLUE, linewidth=1.5 if ordered else 0, marker="_", ms=22, mew=2.5)
    shown = [printable(short_value(value), 18) for value in values]
    slanted = sum(map(len, shown)) + 2 * len(shown) > room
    axes.set_xticks(range(len(values)), shown, rotation=35 if slanted else 0, ha="right" if slanted else "center")
    for text in axes.get_xticklabels():
        text.set_rotation_mode("anchor")
    axes.set_xlim(-0.6, len(values) - 0.4)


def heatmap_figure(sweep: Sweep) -> Figure | None:
    """The mean objective over two knobs, a panel for each combination of the others; None without two such knobs."""
    knobs = [knob for knob in sweep.settings if not is_continuous(list(sweep.jobs[knob]))]
    knobs = [knob for knob in knobs if sweep.jobs[knob].nunique() > 1]
    knobs.sort(key=lambda knob: PREFERRED.index(knob) if knob in PREFERRED else len(PREFERRED))
    if len(knobs) < 2:
        return None
    values = {knob: values_of(sweep.jobs[knob]) for knob in knobs}
    (across, up), apart = knobs[:2], knobs[2:]
    while math.prod(len(values[knob]) for knob in apart) > MOST_PANELS:
        apart.pop()
    names = short_names(sweep.knobs)
    over = [knob for knob in sweep.knobs if knob not in (across, up, *apart) and sweep.jobs[knob].nunique() > 1]
    means = sweep.done.dropna(subset="objective").groupby([across, up, *apart])["objective"].mean()
    scale = (
        Normalize(means.min(), means.max()) if means.min() < means.max() else Normalize(means.min() - 1, means.max())
    )
    panels = list(product(*(values[knob] for knob in apart)))
    columns = min(len(panels), 4 if len(values[across]) < 5 else 2)
    rows = math.ceil(len(panels) / columns)
    title = f"Mean {objective_name(sweep)}"
    height = 1.6 + rows * (0.7 + float(np.clip(0.5 * len(values[up]), 1.3, 5)))
    figure = new_figure(height, title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    colours = colormaps["Blues_r" if sweep.lower else "Blues"].with_extremes(bad="#f4f4f4")
    best = means.idxmin() if sweep.lower else means.idxmax()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    size = float(np.clip(75 / (columns * len(values[across])), 6, 10))
    for place, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        cells = np.array([[means.get((x, y, *panel), math.nan) for x in values[across]] for y in values[up]], float)
        image = axes.imshow(np.ma.masked_invalid(cells), cmap=colours, norm=scale, aspect="auto", origin="lower")
        for (row, column), cell in np.ndenumerate(cells):
            text, ink = ("–", QUIET) if math.isnan(cell) else (f"{cell:.3f}", ink_on(colours(scale(cell))))  # noqa: RUF001
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
            if (values[across][column], values[up][row], *panel) == best:
                axes.add_patch(
                    Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=VERMILION, linewidth=2.5)
                )
        for axis, knob in ((axes.xaxis, across), (axes.yaxis, up)):
            axis.set_ticks(range(len(values[knob])), [printable(short_value(value), 14) for value in values[knob]])
        axes.tick_params(length=0, labelbottom=place + columns >= len(panels))
        axes.spines[:].set_visible(False)
        head = "\n".join(f"{names[knob]}={short_value(value)}" for knob, value in zip(apart, panel, strict=True))
        axes.set_title(
            "\n".join(printable(line, round(110 / columns)) for line in head.split("\n")), loc="left", size=10
        )
    note = f"framed: the best cell{'; means over ' if over else ''}{', '.join(names[knob] for knob in over)}"
    figure.supxlabel(f"{printable(across, 90)}\n({printable(note, 110)})", fontsize=10)
    figure.supylabel(printable(up, max(12, round(8 * height))), fontsize=10)
    figure.colorbar(image, ax=list(grid), shrink=0.9, aspect=30, pad=0.015)
    return figure


def pareto_figure(sweep: Sweep, ranking: pd.DataFrame) -> Figure | None:
    """The objective against milliseconds per training clip, the configurations that nothing beats in both labelled.

    None where no cost is known.
    """
    known = ranking[ranking["objective_mean"].notna() & (ranking["clips_per_second"] > 0)].reset_index(drop=True)
    if known.empty:
        return None
    costs, means = list(1000 / known["clips_per_second"]), list(known["objective_mean"])
    front = pareto_front(costs, means, sweep.lower)
    figure = new_figure(4.9 + 0.2 * min(len(front), MOST_NAMED), "What good figures cost")
    axes = figure.subplots()
    axes.errorbar(
        costs,
        means,
        yerr=known["objective_std"].fillna(0),
        linestyle="",
        marker="o",
        markersize=6,
        color=QUIET,
        elinewidth=1,
        alpha=0.7,
        label="a configuration" + (" (bar: standard deviation over seeds)" if known["objective_std"].any() else ""),
    )
    axes.plot(
        [costs[place] for place in front],
        [means[place] for place in front],
        drawstyle="steps-post",
        color=BLUE,
        linewidth=2,
        marker="o",
        markersize=8,
        zorder=4,
        label="nothing is both cheaper and better",
    )
    named = sorted(front, key=lambda place: int(known["rank"][place]))[:MOST_NAMED]
    for place in named:
        name = f"#{known['rank'][place]}  {label(known.loc[place], sweep)}"
        axes.plot([], [], linestyle="", label=printable(f"{name}: {means[place]:.3f} at {costs[place]:.3g} ms", 120))
    if _is_wide(costs):
        axes.set_xscale("log")
    axes.margins(x=0.1, y=0.1)
    axes.set(xlabel="milliseconds per training clip", ylabel=objective_name(sweep))
    soften(axes)
    handles, labels = axes.get_legend_handles_labels()  # the bars come last, whatever was drawn first
    handles, labels = handles[-1:] + handles[:-1], labels[-1:] + labels[:-1]
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=9, handlelength=1.6)
    figure.draw_without_rendering()  # only now it is known how far apart the dots are
    _number_dots(axes, {f"#{known['rank'][place]}": (costs[place], means[place]) for place in named}, sweep.lower)
    return figure


def _number_dots(axes: Axes, dots: dict[str, tuple[float, float]], lower: bool) -> None:
    """Labels dots on the side where nothing can be, cheaper and better; labels that would meet go further out."""
    taken: list[tuple[float, float]] = []
    for text, dot in dots.items():
        x, y = axes.transData.transform(dot) * 72 / axes.figure.dpi  # in points
        while any(abs(x - left) < 28 and abs(y - top) < 14 for left, top in taken):
            x -= 4
        taken.append((x, y))
        axes.annotate(
            text,
            dot,
            (x - axes.transData.transform(dot)[0] * 72 / axes.figure.dpi - 6, -7 if lower else 7),
            textcoords="offset points",
            ha="right",
            va="top" if lower else "bottom",
            fontsize=11,
            fontweight="bold",
            color=BLUE,
            zorder=5,
        )


def curves_figure(sweep: Sweep, ranking: pd.DataFrame) -> Figure | None:
    """Val loss and accuracy per epoch, a line per configuration, the best of them in colour; None without any epoch.

    A line is the mean over the finished jobs of a configuration, or over those that are not finished where none is
    (dashed), as far as all of them have come.
    """
    lines = {name: _mean_history(sweep, name) for name in sweep.jobs["configuration"].unique()}
    order = [*ranking["configuration"], *(name for name in lines if name not in set(ranking["configuration"]))]
    order = [name for name in order if len(lines[name])]
    if not order:
        return None
    coloured = dict(zip(order, COLOURS, strict=False))
    ranks = dict(zip(ranking["configuration"], ranking["rank"], strict=True))
    figure = new_figure(4.6 + 0.2 * len(coloured), "Learning curves")
    panels = figure.subplots(1, 2)
    for name in reversed(order):  # the best on top
        row = sweep.jobs[sweep.jobs["configuration"] == name].iloc[0]
        text = f"#{ranks[name]}  {label(row, sweep)}" if name in ranks else f"{label(row, sweep)} (unfinished)"
        style: dict[str, Any] = {"color": OTHERS, "linewidth": 1.0, "zorder": 2}
        if name in coloured:
            style = {"color": coloured[name], "linewidth": 2.0, "zorder": 3, "label": printable(text, 120)}
        style |= {"linestyle": "-" if name in ranks else "--", "marker": "o", "markersize": 3}
        for axes, metric in zip(panels, ("val/loss", "val/accuracy"), strict=True):
            axes.plot(lines[name].index, lines[name][metric], **style)
    drawn = pd.concat([lines[name] for name in order])
    for axes, metric in zip(panels, ("val/loss", "val/accuracy"), strict=True):
        axes.set(xlabel="epoch", ylabel=f"{metric.replace('/', ' ')}, mean over seeds")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(drawn.index.min() - 0.5, drawn.index.max() + 0.5)
        soften(axes)
    losses = drawn["val/loss"][np.isfinite(drawn["val/loss"])]
    if _is_wide(losses):  # one that diverges would press the others flat
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter(ScalarFormatter())
        panels[0].yaxis.set_minor_formatter(NullFormatter())
    handles, labels = panels[0].get_legend_handles_labels()
    if len(order) > len(coloured):
        handles.append(panels[0].plot([], [], color=OTHERS)[0])
        others = "others" if ranks.keys() >= set(order) else "others (dashed: unfinished)"
        labels.append(others)
    places = [*reversed(range(len(coloured))), *range(len(coloured), len(handles))]
    figure.legend(
        [handles[place] for place in places],
        [labels[place] for place in places],
        loc="outside lower left",
        frameon=False,
        fontsize=9,
    )
    return figure


def _mean_history(sweep: Sweep, configuration: str) -> pd.DataFrame:
    jobs = sweep.jobs[(sweep.jobs["configuration"] == configuration) & sweep.jobs["job"].isin(sweep.histories)]
    for state in ("done", "unfinished"):
        found = [sweep.histories[job].set_index("epoch") for job in jobs.loc[jobs["state"] == state, "job"]]
        if found:
            common = set.intersection(*(set(table.index) for table in found))
            return pd.concat(found).groupby(level="epoch").mean().loc[sorted(common)]
    return pd.DataFrame(columns=["val/loss", "val/accuracy"])


def _is_wide(values: Sequence[float] | pd.Series) -> bool:
    return len(values) > 0 and min(values) > 0 and max(values) > LOG_SPAN * min(values)
