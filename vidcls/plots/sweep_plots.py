"""Plots of a sweep: the effect of each option, the best cells, the Pareto front, the learning curves."""

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
from pandas.api.types import is_numeric_dtype

from vidcls.cli import short_names, value_text
from vidcls.plots.style import BLUE, GREEN, INK, QUIET, VERMILION, ink_on, new_figure, printable, soften

COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00")  # Okabe & Ito
OTHERS = "#b9b9b9"
HEATMAP_AXES = ("data.num_frames", "data.resolution")  # where they are swept
MAX_PANELS = 24
MAX_NAMED = 15  # of the Pareto front
DOTS: dict[str, Any] = {"linestyle": "", "marker": "o", "color": QUIET, "alpha": 0.6, "markeredgewidth": 0}
LOG_SPAN = 20  # an axis whose values span a larger factor is logarithmic


def effects_figure(done: pd.DataFrame, options: Sequence[str], continuous: Sequence[str], objective: str) -> Figure:
    """A panel per option: a dot per finished job, and the mean of each value that several jobs share.

    ``done`` has a row per finished job; the values of ``continuous`` options hardly repeat and get no means.
    """
    columns = 2 if len(options) == 4 else min(3, len(options))
    rows = math.ceil(len(options) / columns)
    figure = new_figure(1.0 + 2.9 * rows, f"Each option on its own: {len(done)} finished jobs")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in grid[len(options) :]:
        axes.set_axis_off()
    for axes, option in zip(grid, options, strict=False):
        if option in continuous:
            axes.plot(done[option], done["objective"], markersize=5, **DOTS)
            axes.set_xscale("log" if _is_wide(done[option]) else "linear")
        else:
            _value_panel(axes, done[option], done["objective"], round(90 / columns))
        axes.set_title(printable(option, round(100 / columns)), loc="left", color=INK, fontsize=10)
        soften(axes)
    figure.supylabel(objective, fontsize=10)
    figure.supxlabel("grey: one job each; blue: mean of the jobs with that value", fontsize=10, color=QUIET)
    return figure


def _value_panel(axes: Axes, column: pd.Series, objective: pd.Series, max_letters: int) -> None:
    groups = objective.groupby(column)
    for index, (_, found) in enumerate(groups):
        jitter = 0.12 * (np.arange(len(found)) % 3 - 1) if len(found) > 2 else np.zeros(len(found))
        axes.plot(index + jitter, found.sort_values(), markersize=5, **DOTS)
    joined = is_numeric_dtype(column) and column.name != "seed"
    means = groups.mean().where(groups.size() > 1)
    axes.plot(range(len(means)), means, color=BLUE, linewidth=1.5 if joined else 0, marker="_", ms=22, mew=2.5)
    names = [printable(value_text(value), 18) for value in means.index]
    slanted = sum(map(len, names)) + 2 * len(names) > max_letters
    axes.set_xticks(range(len(names)), names)
    if slanted:
        axes.tick_params(axis="x", labelrotation=35)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(names) - 0.4)


def heatmap_figure(
    jobs: pd.DataFrame, options: Sequence[str], averaged: Sequence[str], objective: str, lower_is_better: bool
) -> Figure:
    """The mean objective over two ``options``, a panel for each combination of the others.

    ``jobs`` has a row per job. It is averaged over the options ``averaged``, and where that would be too many panels
    also over the last of ``options``.
    """
    options = sorted(options, key=lambda option: [*HEATMAP_AXES, option].index(option))
    values = {option: sorted(jobs[option].unique()) for option in options}
    (across, up), apart = options[:2], options[2:]
    while math.prod(len(values[option]) for option in apart) > MAX_PANELS:
        averaged = [apart.pop(), *averaged]
    swept = [across, up, *apart, *averaged]
    names = dict(zip(swept, short_names(swept), strict=True))
    means = jobs.dropna(subset="objective").groupby([across, up, *apart])["objective"].mean()
    scale = Normalize(means.min() - (means.min() == means.max()), means.max())
    best = means.idxmin() if lower_is_better else means.idxmax()
    colours = colormaps["Blues_r" if lower_is_better else "Blues"].with_extremes(bad="#f4f4f4")
    panels = list(product(*(values[option] for option in apart)))
    columns = min(len(panels), 4 if len(values[across]) < 5 else 2)
    rows = math.ceil(len(panels) / columns)
    height = 1.6 + rows * (0.7 + float(np.clip(0.5 * len(values[up]), 1.3, 5)))
    figure = new_figure(height, f"Mean {objective}")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    size = float(np.clip(75 / (columns * len(values[across])), 6, 10))
    for index, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        cells = np.array([[means.get((x, y, *panel), math.nan) for x in values[across]] for y in values[up]], float)
        image = axes.imshow(np.ma.masked_invalid(cells), cmap=colours, norm=scale, aspect="auto", origin="lower")
        for (row, column), cell in np.ndenumerate(cells):
            text, ink = ("–", QUIET) if math.isnan(cell) else (f"{cell:.3f}", ink_on(colours(scale(cell))))  # noqa: RUF001
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
            if (values[across][column], values[up][row], *panel) == best:
                corner = (column - 0.46, row - 0.46)
                axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=VERMILION, linewidth=2.5))
        for axis, option in ((axes.xaxis, across), (axes.yaxis, up)):
            axis.set_ticks(range(len(values[option])), [printable(value_text(v), 14) for v in values[option]])
        axes.tick_params(length=0, labelbottom=index + columns >= len(panels))
        axes.spines[:].set_visible(False)
        lines = [f"{names[option]}={value_text(value)}" for option, value in zip(apart, panel, strict=True)]
        axes.set_title("\n".join(printable(line, round(110 / columns)) for line in lines), loc="left", size=10)
    note = "framed: the best cell" + (f"; means over {', '.join(names[o] for o in averaged)}" if averaged else "")
    figure.supxlabel(f"{printable(across, 90)}\n({printable(note, 110)})", fontsize=10)
    figure.supylabel(printable(up, max(12, round(8 * height))), fontsize=10)
    figure.colorbar(image, ax=list(grid), shrink=0.9, aspect=30, pad=0.015)
    return figure


def pareto_front(ranking: pd.DataFrame, lower_is_better: bool) -> pd.DataFrame:
    """The configurations that no other one dominates in speed and mean objective, from fast to slow."""
    losses = ranking["objective_mean"] * (1 if lower_is_better else -1)
    table = ranking.assign(loss=losses).sort_values(
        ["clips_per_second", "loss"], ascending=[False, True], kind="stable"
    )
    return table[table["loss"] < table["loss"].cummin().shift(fill_value=math.inf)]


def pareto_figure(ranking: pd.DataFrame, objective: str, lower_is_better: bool) -> Figure | None:
    """The objective against milliseconds per training clip, with the Pareto front; None if no cost is known.

    ``ranking`` has a row per configuration: rank, label, objective_mean, objective_std and clips_per_second.
    """
    known = ranking[ranking["objective_mean"].notna() & (ranking["clips_per_second"] > 0)]
    if known.empty:
        return None
    known = known.assign(cost=1000 / known["clips_per_second"])
    front, std = pareto_front(known, lower_is_better), known["objective_std"]
    figure = new_figure(4.9 + 0.2 * min(len(front), MAX_NAMED), "Objective against cost")
    axes = figure.subplots()
    axes.errorbar(known["cost"], known["objective_mean"], std.fillna(0), markersize=6, elinewidth=1, **DOTS)
    text = "configuration" + (" (bar: standard deviation over seeds)" if std.any() else "")
    axes.plot([], [], markersize=6, label=text, **DOTS)
    line: dict[str, Any] = {"color": BLUE, "linewidth": 2, "marker": "o", "markersize": 8, "zorder": 4}
    axes.plot(front["cost"], front["objective_mean"], drawstyle="steps-post", label="Pareto front", **line)
    side = -1 if lower_is_better else 1  # where no configuration can be
    for _, row in front.sort_values("rank").head(MAX_NAMED).iterrows():
        result = f"{row['objective_mean']:.3f} at {row['cost']:.3g} ms"
        axes.plot([], [], linestyle="", label=printable(f"#{row['rank']:.0f}  {row['label']}: {result}", 120))
        style: dict[str, Any] = {"ha": "right", "va": "center", "weight": "bold", "color": BLUE, "zorder": 5}
        axes.annotate(
            f"#{row['rank']:.0f}",
            (row["cost"], row["objective_mean"]),
            (-6, 12 * side),
            textcoords="offset points",
            **style,
        )
    axes.set_xscale("log" if _is_wide(known["cost"]) else "linear")
    axes.margins(x=0.1, y=0.1)
    axes.set(xlabel="milliseconds per training clip", ylabel=objective)
    soften(axes)
    figure.legend(loc="outside lower left", frameon=False, fontsize=9, handlelength=1.6)
    return figure


def curves_figure(curves: Sequence[tuple[str, pd.DataFrame, bool]]) -> Figure:
    """Val loss and accuracy per epoch, a line per configuration, the first ones in colour.

    ``curves`` hold, the best first: a label, a table by epoch, and whether it is finished (else its line is dashed).
    """
    figure = new_figure(4.6 + 0.2 * min(len(curves), len(COLOURS)), "Learning curves")
    panels = dict(zip(("val/loss", "val/accuracy"), figure.subplots(1, 2), strict=True))
    for index, (label, history, finished) in enumerate(curves):
        style: dict[str, Any] = {"color": OTHERS, "linewidth": 1.0}
        if index < len(COLOURS):
            style = {"color": COLOURS[index], "linewidth": 2.0, "label": printable(label, 120)}
        elif index == len(COLOURS):
            style["label"] = "others (dashed: unfinished)"
        style |= {"linestyle": "-" if finished else "--", "marker": "o", "markersize": 3}
        for metric, axes in panels.items():
            axes.plot(history.index, history[metric], zorder=3 - index / len(curves), **style)
    drawn = pd.concat([history for _, history, _ in curves])
    for metric, axes in panels.items():
        axes.set(xlabel="epoch", ylabel=f"{metric.replace('/', ' ')}, mean over seeds")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(drawn.index.min() - 0.5, drawn.index.max() + 0.5)
        soften(axes)
    if _is_wide(drawn["val/loss"][np.isfinite(drawn["val/loss"])]):  # a loss that diverges would flatten the others
        axes = panels["val/loss"]
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(*panels["val/loss"].get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=9)
    return figure


def _is_wide(values: Sequence[float] | pd.Series) -> bool:
    return len(values) > 0 and min(values) > 0 and max(values) > LOG_SPAN * min(values)
