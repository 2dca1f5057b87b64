"""Plots of a run: confusion matrices, learning curves, reliability, precision-recall and ROC curves, frames."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vidcls.metrics.calibration import Reliability
from vidcls.metrics.curves import Curve
from vidcls.plots.style import BLUE, GREEN, INK, QUIET, VERMILION, WIDTH, ink_on, new_figure, printable, soften

PALETTE = {"train": BLUE, "val": VERMILION, "test": GREEN}
MAX_FRAMES = 8  # of one strip
GUTTER = 0.04  # between the frames of a strip, in frame widths
MAX_LABELLED_CLASSES = 30  # of a confusion matrix: of more, cells have no text and not every class is named
MAX_PANELS = 20  # of curves, one per class


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """K x K counts (rows = truth) and their fractions of each true class; raises ValueError if not K x K."""
    counts, k = np.asarray(confusion), len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"expected a {k} x {k} table for {k} classes; got shape {counts.shape}")
    support = counts.sum(axis=1)
    shares = counts / np.maximum(support, 1)[:, None]  # a class without videos: a row of 0
    figure = new_figure(float(np.clip(3 + 0.5 * k, 4.5, 10)), title)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = float(np.clip(90 / k, 6.5, 14))
    for (row, column), share in np.ndenumerate(shares if k <= MAX_LABELLED_CLASSES else np.empty((0, 0))):
        text = f"{counts[row, column]}\n" + (f"{share:.0%}" if support[row] else "–")  # noqa: RUF001 (a dash: none)
        colour = ink_on(image.cmap(share))
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
    named = range(0, k, math.ceil(k / MAX_LABELLED_CLASSES))
    names = [printable(classes[index], 24) for index in named]
    slanted = k > 6 or max(map(len, names)) > 72 / k
    axes.set_xticks(named, names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor" if slanted else "default")
    axes.set_yticks(named, [f"{name} (n={support[index]})" for name, index in zip(names, named, strict=True)])
    axes.set(xlabel="predicted (videos, fraction of the true class)", ylabel="truth")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10 if k <= 8 else 9)
    if k <= MAX_LABELLED_CLASSES:  # white lines between the cells
        axes.set_xticks(np.arange(k - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(k - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
    return figure


def strips_figure(frames: Sequence[UInt8[np.ndarray, "_T _H _W 3"]], captions: Sequence[str], title: str) -> Figure:
    """A strip of up to eight evenly spaced frames per video, with its caption.

    Raises:
        ValueError: there is not one caption per video, or a video has no frames.
    """
    if len(frames) != len(captions):
        raise ValueError(f"expected a caption for each video; got {len(frames)} videos and {len(captions)} captions")
    if not frames:
        figure = new_figure(1.0, title)
        figure.text(0.015, 0.3, "no videos", color=QUIET, fontsize=11)
        return figure
    columns = max(4, *(min(len(video), MAX_FRAMES) for video in frames))  # 4: frames of short videos stay small
    strips = [_strip(video, columns) for video in frames]
    heights = [(WIDTH - 0.3) * strip.shape[0] / strip.shape[1] for strip in strips]  # inches
    figure = new_figure(0.5 + sum(heights) + 0.45 * len(strips), title)  # 0.45: a caption and the gap below a strip
    grid = figure.subplots(len(strips), height_ratios=heights, squeeze=False).ravel()
    for axes, strip, caption in zip(grid, strips, captions, strict=True):
        axes.imshow(strip)
        axes.set_axis_off()
        axes.set_title(printable(caption, 100), loc="left", color=INK, fontsize=10, pad=4)
    return figure


def learning_curves_figure(history: dict[str, list[tuple[int, float]]], best_epoch: int | None) -> Figure:
    """A panel per metric with a curve per split, against the epoch; ``best_epoch`` is marked.

    ``history`` maps "split/metric", such as "val/loss", to (epoch, value) pairs. Raises ValueError for other keys, or
    without curves.
    """
    if not history or not all("/" in key for key in history):
        raise ValueError(f'expected curves named "split/metric", as "val/loss"; got {list(history)}')
    metrics = list(dict.fromkeys(key.split("/", 1)[1] for key in history))
    seen = [epoch for points in history.values() for epoch, _ in points]
    figure = new_figure(4.2, "Learning curves")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for key, points in history.items():
            split, name = key.split("/", 1)
            if name == metric:
                epochs, values = zip(*points, strict=True) if points else ((), ())
                colour = PALETTE.get(split, QUIET)
                axes.plot(epochs, values, color=colour, marker="o", markersize=4, linewidth=2, label=split)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=INK, linestyle="--", linewidth=1, label=f"best epoch ({best_epoch})")
        # Accuracy, F1 and the like are fractions.
        axes.set_ylim(*((0, 1.05 * axes.get_ylim()[1]) if metric == "loss" else (-0.03, 1.03)))
        if seen:
            axes.set_xlim(min(seen) - 0.5, max(seen) + 0.5)  # a run of one epoch has an axis too
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=metric.replace("_", " "))
        axes.legend(frameon=False)
        soften(axes)
    return figure


def reliability_figure(before: Reliability, after: Reliability | None, title: str) -> Figure:
    """Accuracy against confidence, and below it the distribution of confidence, ``before`` and ``after`` calibration.

    Points below the dotted diagonal are overconfident. The area of a point grows with its number of videos.
    """
    figure = new_figure(6.8, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=QUIET, linestyle=":", linewidth=1.5, label="perfect calibration")
    drawn = [("network" if after is None else "before calibration", before, VERMILION)]
    if after is not None:
        drawn.append(("after calibration", after, BLUE))
    for name, found, colour in drawn:
        shares, held = found.count / found.count.sum(), found.count > 0
        x, y = found.confidence[held], found.accuracy[held]
        above.plot(x, y, color=colour, linewidth=1.5, alpha=0.5)
        above.scatter(x, y, s=15 + 600 * shares[held], color=colour, alpha=0.75, linewidths=0)
        above.plot([], [], color=colour, marker="o", label=f"{name} (ECE {found.error:.3f})")  # for the legend
        bins, filled = np.linspace(0, 1, len(shares) + 1), found is before
        below.stairs(shares, bins, color=colour, linewidth=2, fill=filled, alpha=0.4 if filled else 1.0)
    above.set(ylabel="accuracy", ylim=(-0.04, 1.04))
    below.set(xlabel="probability of the predicted class", ylabel="videos", xlim=(-0.01, 1.01))
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    above.legend(frameon=False)
    soften(above)
    soften(below)
    return figure


def precision_recall_figure(curves: Mapping[str, Curve | None], title: str) -> Figure:
    """Precision against recall, a panel per class; dotted: the precision of guessing."""
    figure, panels = _class_panels(curves, title, "AP", "steps-pre")
    figure.supxlabel("recall")
    figure.supylabel("precision (dotted: guessing)")
    for axes, curve in panels:
        if curve is not None:
            axes.axhline(curve.prevalence, color=INK, linestyle=":", linewidth=1.2, zorder=2)
    return figure


def roc_figure(curves: Mapping[str, Curve | None], title: str) -> Figure:
    """The true against the false positive rate, a panel per class; dotted: guessing."""
    figure, panels = _class_panels(curves, title, "AUROC", "default")
    figure.supxlabel("false positive rate")
    figure.supylabel("true positive rate (dotted: guessing)")
    for axes, _ in panels:
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2, zorder=2)
    return figure


def _class_panels(
    curves: Mapping[str, Curve | None], title: str, area: str, drawstyle: Literal["default", "steps-pre"]
) -> tuple[Figure, list[tuple[Axes, Curve | None]]]:
    # A panel per class: its curve, and those of the others in grey, as twenty colours cannot be distinguished.
    if len(curves) > MAX_PANELS:
        title = f"{title}: the {MAX_PANELS} of {len(curves)} classes with the lowest {area}"
        lowest = sorted(curves, key=lambda name: math.inf if (curve := curves[name]) is None else curve.area)
        curves = {name: curves[name] for name in lowest[:MAX_PANELS]}
    k = len(curves)
    if sum(curve is not None for curve in curves.values()) > 1:
        title += " (grey: the other classes)"
    columns = k if k <= 4 else math.ceil(math.sqrt(k))
    rows = math.ceil(k / columns)
    figure = new_figure(1.1 + rows * (9.0 / columns + 0.35), title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in grid[k:]:
        axes.set_axis_off()
    for index, (axes, (name, curve)) in enumerate(zip(grid, curves.items(), strict=False)):
        for other in curves.values():
            if other is not None and other is not curve:
                axes.plot(other.x, other.y, drawstyle=drawstyle, color="#d5d5d5", linewidth=1, zorder=1)
        head = printable(name, round(100 / columns))
        if curve is None:
            axes.text(0.5, 0.5, "not defined", ha="center", va="center", color=QUIET, backgroundcolor="white")
        else:
            axes.plot(curve.x, curve.y, drawstyle=drawstyle, color=BLUE, linewidth=2, zorder=3)
            head += f"\n{area} {curve.area:.3f}, {curve.support} videos"
        axes.set_title(head, loc="left", color=INK, fontsize=10)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.tick_params(labelbottom=index + columns >= k)  # also where the last row does not reach
        soften(axes)
    return figure, list(zip(grid, curves.values(), strict=False))


def _strip(video: UInt8[np.ndarray, "T H W 3"], columns: int) -> UInt8[np.ndarray, "H S 3"]:
    # Up to ``columns`` frames side by side, white between them and where there are fewer.
    length, height, width, _ = video.shape
    if length == 0:
        raise ValueError("expected at least one frame of each video; got none")
    shown = min(length, columns)
    gutter = max(1, round(GUTTER * width))
    strip = np.full((height, columns * (width + gutter) - gutter, 3), 255, dtype=np.uint8)
    for column in range(shown):
        start = column * (width + gutter)
        strip[:, start : start + width] = video[(2 * column + 1) * length // (2 * shown)]
    return strip
